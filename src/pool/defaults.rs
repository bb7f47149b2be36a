//! The default resource of each kind.

use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::base::error::Error;
use crate::kinds::for_each_kind;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::registry::Registry;
use crate::lifecycle::slot::Slot;

macro_rules! defaults {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        /// The default resource of each kind, made on first use. A registry keeps it without its type. Otherwise a
        /// compiler that checks whether a pool may cross threads would look through the types of all drivers each time,
        /// and would give up at 128 levels.
        #[derive(Default)]
        pub(crate) struct Defaults {
            $(#[cfg(feature = $feature)] $kind: OnceCell<Arc<Slot<crate::kinds::$kind::$resource>>>,)*
        }

        impl Registry {
            $(
                /// The default resource of this kind.
                #[cfg(feature = $feature)]
                #[inline]
                pub(crate) fn $kind(&self) -> Result<&Arc<Slot<crate::kinds::$kind::$resource>>, Error> {
                    let Defaults { $kind, .. } = self.defaults()?;
                    $kind.get_or_try_init(|| self.named::<crate::kinds::$kind::$config>(crate::kinds::$kind::$config::KIND))
                }
            )*
        }
    };
}

for_each_kind!(defaults);
