//! Whom a certificate is for: the caller, or, where the caller is a node's
//! proxy, a workload on the same node.
//!
//! A node proxy (ztunnel) opens the connections of all pods on its node, and
//! needs their certificates. It is believed only where the settings name its
//! ServiceAccount, and only about pods that the API server says run beside it:
//! whoever takes over a node can be what runs there, and nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;

use bulkhead_core::identity::{SpiffeId, TrustDomain};

use crate::authenticate::pods::Pods;
use crate::authenticate::{Caller, Source};
use crate::vet::VetError;

/// An identity that a caller may ask for: its own, or what
/// [`NodeProxies::subject`] found.
#[derive(Clone, Debug)]
pub struct Subject {
    id: SpiffeId,
    caller: Caller,
}

impl Subject {
    /// Everybody may ask for itself.
    pub fn own(caller: &Caller) -> Self {
        Self::for_caller(caller.id().clone(), caller)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn for_caller(id: SpiffeId, caller: &Caller) -> Self {
        Self {
            id,
            caller: caller.clone(),
        }
    }
}

/// Who is believed to be a node's proxy.
#[derive(Clone, Debug)]
pub struct NodeProxies {
    trust_domain: TrustDomain,
    trusted: BTreeSet<SpiffeId>,
    pods: Option<Arc<Pods>>,
}

impl NodeProxies {
    /// Nobody, where there are no pods to look at.
    pub fn new(
        trust_domain: TrustDomain,
        trusted: impl IntoIterator<Item = SpiffeId>,
        pods: Option<Arc<Pods>>,
    ) -> Self {
        Self {
            trust_domain,
            trusted: trusted.into_iter().collect(),
            pods,
        }
    }

    /// For whom this call may be: every rule, in reading order.
    pub fn subject(
        &self,
        caller: &Caller,
        on_behalf_of: Option<&str>,
    ) -> Result<Subject, VetError> {
        let own = caller.id();
        let Some(wanted) = on_behalf_of.filter(|wanted| *wanted != own.as_str()) else {
            return Ok(Subject::own(caller));
        };
        let impersonation = || VetError::Impersonation(crate::vet::shown(wanted));
        // Whoever else signs tokens does not know what runs on the cluster's nodes.
        let is_in_cluster = caller.source() == Source::TokenReview;
        if !is_in_cluster || !self.trusted.contains(own) {
            return Err(impersonation());
        }
        let pods = self.pods.as_ref().ok_or_else(impersonation)?;
        let id = SpiffeId::parse(wanted).map_err(|_| impersonation())?;
        if !id.is_member_of(&self.trust_domain) {
            return Err(impersonation());
        }
        let (namespace, account) = id.workload_name().ok_or_else(impersonation)?;
        let proxy = caller.pod().ok_or(VetError::UnknownNode)?;
        let (own_namespace, own_account) = own.workload_name().ok_or(VetError::UnknownNode)?;
        let node = pods
            .node_of(proxy, own_namespace, own_account)
            .ok_or(VetError::UnknownNode)?;
        if pods.runs_on(&node, namespace, account) {
            Ok(Subject::for_caller(id, caller))
        } else {
            Err(VetError::NotOnNode {
                identity: crate::vet::shown(wanted),
                node,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Pod;
    use crate::authenticate::pods::tests::cluster;
    use bulkhead_core::sidecar::default_trust_domain;

    fn id(account: &str) -> String {
        format!("spiffe://cluster.local/ns/shop/sa/{account}")
    }

    /// A call of `account`, whose token is bound to the pod with this UID.
    fn call(account: &str, uid: &str, wanted: &str) -> Result<Subject, VetError> {
        let domain = default_trust_domain();
        let caller = Caller::of_pod(
            SpiffeId::workload(&domain, "shop", account).unwrap(),
            Pod {
                name: format!("{account}-0"),
                uid: uid.to_owned(),
            },
        );
        let trusted = ["ztunnel", "pay"].map(|name| SpiffeId::parse(&id(name)).unwrap());
        let proxies = NodeProxies::new(domain, trusted, Some(Arc::new(cluster())));
        proxies.subject(&caller, Some(wanted))
    }

    #[test]
    fn a_node_proxy_may_ask_for_what_runs_on_its_node() {
        let subject = call("ztunnel", "p", &id("cart")).unwrap();
        assert_eq!(subject.id().as_str(), id("cart"));
        assert!(
            call("ztunnel", "p", &id("ztunnel")).is_ok(),
            "and for itself"
        );
    }

    #[test]
    fn and_for_nothing_that_runs_elsewhere_has_ended_or_never_was() {
        for account in ["pay", "job", "nobody"] {
            let refused = call("ztunnel", "p", &id(account)).unwrap_err();
            assert_eq!(refused.reason(), "not_on_node", "{account}");
        }
    }

    #[test]
    fn a_pod_that_is_not_the_proxys_own_proves_no_node() {
        // That of another node's proxy, of an application, and of nobody.
        for uid in ["o", "c", "x"] {
            let refused = call("ztunnel", uid, &id("cart")).unwrap_err();
            assert_eq!(refused, VetError::UnknownNode, "{uid}");
        }
    }

    #[test]
    fn whoever_is_not_named_asks_for_itself_alone() {
        let refused = call("cart", "c", &id("pay")).unwrap_err();
        assert_eq!(refused.reason(), "impersonation");
        assert!(call("cart", "c", &id("cart")).is_ok());
    }

    #[test]
    fn another_trust_domain_and_names_that_are_none_are_refused() {
        for wanted in [
            "spiffe://elsewhere/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart/x",
            "spiffe://cluster.local/ns/shop",
            "cart",
            "spiffe://cluster.local/ns/shop/sa/../sa/cart",
        ] {
            let refused = call("ztunnel", "p", wanted).unwrap_err();
            assert_eq!(refused.reason(), "impersonation", "{wanted}");
        }
    }
}
