//! The handle of an adapter: its open connections.

use std::fmt;
use std::sync::Arc;

use r2d2::ManageConnection;

use crate::lifecycle::checkout::{Adapted, Checkouts};
use crate::lifecycle::lease::LeaseAs;

/// The connections of an [`R2d2`](crate::R2d2), which [`check_out`](crate::pool::blocking::ResourcePool::check_out)
/// hands out.
pub struct Connections<M: ManageConnection>(pub(super) Arc<Checkouts<Adapted<M>>>);

impl<M: ManageConnection> LeaseAs<Checkouts<Adapted<M>>> for Connections<M> {
    fn lease_as(&self) -> &Checkouts<Adapted<M>> {
        &self.0
    }
}

impl<M: ManageConnection> Clone for Connections<M> {
    fn clone(&self) -> Self {
        Connections(Arc::clone(&self.0))
    }
}

impl<M: ManageConnection> fmt::Debug for Connections<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.0.usage()).finish()
    }
}
