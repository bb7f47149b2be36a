//! Setters for the fields of configurations, which all have the same form.

/// Makes a setter of each field. A text is anything that converts into the field's type. An optional field is set to a
/// value of its inner type.
macro_rules! setters {
    ($(plain { $($(#[$plain_doc:meta])* $plain:ident: $plain_type:ty,)* })?
     $(text { $($(#[$text_doc:meta])* $text:ident: $text_type:ty,)* })?
     $(optional { $($(#[$optional_doc:meta])* $optional:ident: $optional_type:ty,)* })?) => {
        $($(
            $(#[$plain_doc])*
            pub fn $plain(mut self, $plain: $plain_type) -> Self {
                self.$plain = $plain;
                self
            }
        )*)?
        $($(
            $(#[$text_doc])*
            pub fn $text(mut self, $text: impl Into<$text_type>) -> Self {
                self.$text = $text.into();
                self
            }
        )*)?
        $($(
            $(#[$optional_doc])*
            pub fn $optional(mut self, $optional: impl Into<$optional_type>) -> Self {
                self.$optional = Some($optional.into());
                self
            }
        )*)?
    };
}

pub(crate) use setters;
