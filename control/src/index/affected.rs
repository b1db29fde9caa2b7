//! Whose answers a change may have changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::object::Key;

/// Whose answers may be others now. Too many do no harm but work: an answer that
/// is the same is not sent again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Affected {
    /// All of them.
    pub everything: bool,
    /// The endpoints of these Services.
    pub services: BTreeSet<Key>,
    /// What these pods accept, and whether they are bypassed.
    pub pods: BTreeSet<Key>,
    /// Destinations with these addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Affected {
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.services.is_empty()
            && self.pods.is_empty()
            && self.addresses.is_empty()
    }
}
