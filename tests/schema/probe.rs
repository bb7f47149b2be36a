//! Finds out the keys that a type takes, and the shape of each value, by letting the type deserialize itself.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// The shape of a value in TOML.
#[derive(Debug, Default)]
pub(crate) enum Shape {
    #[default]
    Unknown,
    Bool,
    /// A whole number, from this one on. `None` if it may be negative.
    Integer(Option<u64>),
    Text,
    OneOf(&'static [&'static str]),
    List(Box<Shape>),
    /// A table with any keys.
    Map(Box<Shape>),
    /// A table with these keys. The type has this name in Rust.
    Table(&'static str, BTreeMap<&'static str, Shape>),
}

impl Shape {
    /// The shape of this type.
    pub(crate) fn of<'de, T: Deserialize<'de>>() -> Self {
        let mut shape = Shape::default();
        T::deserialize(Probe(&mut shape)).expect("a value of the right shape");
        shape
    }
}

struct Probe<'a>(&'a mut Shape);

macro_rules! integers {
    ($least:expr; $($deserialize:ident)*) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.0 = Shape::Integer($least);
            visitor.visit_u64(1)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    integers!(Some(0); deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    integers!(None; deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        panic!("a value of a shape that no key has yet");
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.0 = Shape::Bool;
        visitor.visit_bool(true)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.0 = Shape::Text;
        visitor.visit_str("text")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Box::<Shape>::default();
        let value = visitor.visit_seq(One(Some(&mut inner)))?;
        *self.0 = Shape::List(inner);
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Box::<Shape>::default();
        let value = visitor.visit_map(One(Some(&mut inner)))?;
        *self.0 = Shape::Map(inner);
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut keys = BTreeMap::new();
        let value = visitor.visit_map(Fields { left: fields, keys: &mut keys })?;
        *self.0 = Shape::Table(name, keys);
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Shape::OneOf(variants);
        let first: StrDeserializer<'_, Error> = variants[0].into_deserializer();
        visitor.visit_enum(first)
    }

    forward_to_deserialize_any! { f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any }
}

/// One element, or one entry.
struct One<'a>(Option<&'a mut Shape>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|shape| seed.deserialize(Probe(shape))).transpose()
    }
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.0.is_some().then(|| seed.deserialize("key".into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Probe(self.0.take().expect("a key came before")))
    }
}

/// All fields of a struct, each once.
struct Fields<'a> {
    left: &'static [&'static str],
    keys: &'a mut BTreeMap<&'static str, Shape>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.left.first().map(|field| seed.deserialize((*field).into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (field, left) = self.left.split_first().expect("a key came before");
        self.left = left;
        let mut shape = Shape::default();
        let value = seed.deserialize(Probe(&mut shape))?;
        self.keys.insert(field, shape);
        Ok(value)
    }
}
