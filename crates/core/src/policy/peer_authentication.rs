//! Istio's PeerAuthentication: which of several applies to a workload, and what
//! they amount to together.
//!
//! ```text
//!  the installation, then annotations          base
//!   └─ mesh        a root namespace, no selector      ┐ each that sets a mode
//!       └─ namespace   the workload's, no selector    │ overrules those above
//!           └─ workload    the workload's, selector   ┘
//!               └─ port        of the workload's
//! ```
//!
//! The order, and who wins where several stand at one level, are Istio's
//! (<https://istio.io/latest/docs/reference/config/security/peer_authentication/>).

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::{InboundPolicy, MtlsMode};

/// One PeerAuthentication.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAuthentication {
    pub namespace: String,
    pub name: String,
    /// When it was created; of several at one level the oldest counts.
    pub created: SystemTime,
    /// The labels that a workload must have; none for all workloads.
    pub selector: BTreeMap<String, String>,
    /// Nothing (UNSET) inherits.
    pub mode: Option<MtlsMode>,
    /// By the workload's own port, not the Service's.
    pub port_modes: BTreeMap<u16, Option<MtlsMode>>,
}

impl PeerAuthentication {
    /// As people name it in a sentence.
    fn title(&self) -> String {
        format!("PeerAuthentication {}/{}", self.namespace, self.name)
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Older first; by name where the clock does not tell.
    fn age(&self) -> (SystemTime, &str, &str) {
        (self.created, &self.namespace, &self.name)
    }
}

/// A workload, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

/// The policies that apply to one workload, one of each level at most.
#[derive(Clone, Copy, Debug, Default)]
struct Applicable<'a> {
    mesh: Option<&'a PeerAuthentication>,
    namespace: Option<&'a PeerAuthentication>,
    workload: Option<&'a PeerAuthentication>,
}

impl<'a> Applicable<'a> {
    fn to(
        workload: Workload<'_>,
        root_namespaces: &BTreeSet<String>,
        policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    ) -> Self {
        let mut found = Self::default();
        for policy in policies {
            let is_root = root_namespaces.contains(&policy.namespace);
            let is_here = policy.namespace == workload.namespace;
            let place = match (is_root, policy.selector.is_empty()) {
                (true, true) => &mut found.mesh,
                (false, true) if is_here => &mut found.namespace,
                (false, false) if is_here && policy.selects(workload.labels) => &mut found.workload,
                // In a root namespace a selector selects nothing.
                _ => continue,
            };
            if place.is_none_or(|other| policy.age() < other.age()) {
                *place = Some(policy);
            }
        }
        found
    }

    /// From the most general to the most specific.
    fn levels(&self) -> impl Iterator<Item = &'a PeerAuthentication> {
        [self.mesh, self.namespace, self.workload]
            .into_iter()
            .flatten()
    }
}

/// What a workload accepts, by the policies that apply to it, over what it
/// accepts without any.
///
/// Where a policy sets the workload's mode, whatever annotations say is of no
/// effect, single ports included: a rule that an operator makes for a mesh or a
/// namespace is not for each pod's author to loosen.
pub fn effective<'a>(
    workload: Workload<'_>,
    base: InboundPolicy,
    root_namespaces: &BTreeSet<String>,
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
) -> InboundPolicy {
    let applicable = Applicable::to(workload, root_namespaces, policies);
    let mut policy = base;
    for level in applicable.levels() {
        if let Some(mode) = level.mode {
            policy = InboundPolicy {
                name: level.title(),
                mode,
                port_modes: BTreeMap::new(),
            };
        }
    }
    // Ports of a policy without a selector mean nothing, since workloads differ
    // in what a port is.
    if let Some(level) = applicable.workload
        && !level.port_modes.is_empty()
    {
        policy.name = level.title();
        for (port, mode) in &level.port_modes {
            policy.port_modes.insert(*port, mode.unwrap_or(policy.mode));
        }
    }
    policy
}

#[cfg(test)]
mod tests;
