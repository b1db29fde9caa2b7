//! What becomes of a request.
//!
//! The API server has checked that a kubelet asks for a pod of its own node. Not
//! only kubelets may be allowed to create requests, though, so that the pod and
//! its ServiceAccount are looked at here as well: the certificate is for whoever
//! the pod is, whoever asks.

use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::BACKDATE;
use bulkhead_pki::csr::{CsrError, ParsedCsr};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, Client, ResourceExt as _};

use super::Trouble;
use super::request::{PodCertificateRequest, Spec};
use crate::authenticate::{Caller, Pod as CallerPod, Source};
use crate::config::Lifetimes;
use crate::issuer::{Issued, Issuer};
use crate::node_proxy::Subject;
use crate::vet::{VettedCsr, vet};

/// The API server takes nothing that is shorter.
const SHORTEST: Duration = Duration::from_secs(3600);
/// What the API server means by no limit of the request's own.
const DEFAULT_LIMIT: u64 = 24 * 3600;

/// What the installation says.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) lifetimes: &'a Lifetimes,
}

/// The end of a request.
pub(super) enum Decision {
    Issued { caller: Caller, issued: Box<Issued> },
    Refused { refusal: Refusal },
}

/// Why there is no certificate, now and for ever.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) outcome: Outcome,
    /// A word in upper camel case; some are Kubernetes' own.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The condition of a request without a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// It may not have one.
    Denied,
    /// It might, and there is none.
    Failed,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "Denied",
            Self::Failed => "Failed",
        }
    }
}

/// The request as one paragraph.
pub(super) async fn decide(
    client: &Client,
    request: &PodCertificateRequest,
    rules: Rules<'_>,
    issuer: &dyn Issuer,
) -> Result<Decision, Trouble> {
    let caller = match caller(client, request, rules.trust_domain).await? {
        Ok(caller) => caller,
        Err(refusal) => return Ok(Decision::Refused { refusal }),
    };
    let (vetted, lifetime) = match asked(&request.spec, &caller, rules.lifetimes) {
        Ok(asked) => asked,
        Err(refusal) => return Ok(Decision::Refused { refusal }),
    };
    let issued = issuer.issue(&vetted, lifetime).await?;
    Ok(match check(&issued, &vetted, lifetime) {
        Ok(()) => Decision::Issued {
            caller,
            issued: Box::new(issued),
        },
        Err(refusal) => Decision::Refused { refusal },
    })
}

/// Whose certificate it is to be: the pod's that the request names, if that is as
/// the request says.
async fn caller(
    client: &Client,
    request: &PodCertificateRequest,
    trust_domain: &TrustDomain,
) -> Result<Result<Caller, Refusal>, Trouble> {
    let spec = &request.spec;
    let namespace = request.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = pods.get_opt(&spec.pod_name).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let account = accounts.get_opt(&spec.service_account_name).await?;
    if let Err(what) = is_of(spec, pod.as_ref(), account.as_ref()) {
        return Ok(Err(denied("NotThePod", what.to_owned())));
    }
    let username = format!(
        "system:serviceaccount:{namespace}:{}",
        spec.service_account_name
    );
    let pod = CallerPod {
        name: spec.pod_name.clone(),
        uid: spec.pod_uid.clone(),
    };
    let caller = Caller::service_account(
        trust_domain,
        &username,
        Some(pod),
        true,
        Source::PodCertificateRequest,
    );
    Ok(caller.map_err(|error| denied("NoIdentity", error.to_string())))
}

/// Whether the pod and the ServiceAccount are those that the request means.
fn is_of(
    spec: &Spec,
    pod: Option<&Pod>,
    account: Option<&ServiceAccount>,
) -> Result<(), &'static str> {
    let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&spec.pod_uid));
    let pod = pod.ok_or("there is no such pod (any more)")?;
    let found = pod.spec.as_ref();
    let name = found.and_then(|found| found.service_account_name.as_ref());
    if name != Some(&spec.service_account_name) {
        return Err("the pod runs as another ServiceAccount");
    }
    if found.and_then(|found| found.node_name.as_ref()) != Some(&spec.node_name) {
        return Err("the pod runs on another node");
    }
    let uid = account.and_then(|account| account.metadata.uid.as_ref());
    if uid != Some(&spec.service_account_uid) {
        return Err("there is no such ServiceAccount (any more)");
    }
    Ok(())
}

/// What is asked for, if that may be had.
fn asked(
    spec: &Spec,
    caller: &Caller,
    lifetimes: &Lifetimes,
) -> Result<(VettedCsr, Duration), Refusal> {
    if let Some(name) = spec.unverified_user_annotations.keys().next() {
        return Err(denied(
            "InvalidUnverifiedUserAnnotations",
            format!("this signer knows no annotations, and the request has {name:?}"),
        ));
    }
    let Some(stub) = &spec.stub else {
        return Err(failed(
            "OlderKubernetes",
            "the request has no stubPKCS10Request; this signer needs Kubernetes 1.36 or newer",
        ));
    };
    let csr = ParsedCsr::from_der(&stub.0).map_err(|error| match error {
        CsrError::Key(error) => denied(
            "UnsupportedKeyType",
            format!("{error}; keyType: ECDSAP256 will do"),
        ),
        error => denied("MalformedRequest", error.to_string()),
    })?;
    let vetted =
        vet(&Subject::own(caller), &csr).map_err(|error| denied("ForeignName", error.to_string()));
    let limit = spec.max_expiration_seconds.unwrap_or(DEFAULT_LIMIT);
    // The certificate is valid from a little before now, and all of it counts.
    let lifetime = Duration::from_secs(limit).saturating_sub(BACKDATE);
    let lifetime = lifetime.min(lifetimes.max);
    if lifetime + BACKDATE < SHORTEST {
        return Err(failed(
            "LifetimeTooShort",
            "Kubernetes takes no certificate for less than an hour, and this CA issues none for \
             as long",
        ));
    }
    Ok((vetted?, lifetime))
}

/// Whatever the issuer is, and whatever became of it: what leaves here is for
/// the pod, for its key, and for as long as the API server takes.
fn check(issued: &Issued, vetted: &VettedCsr, lifetime: Duration) -> Result<(), Refusal> {
    let svid = &issued.svid;
    let valid = svid.not_after().duration_since(svid.not_before());
    let valid = valid.unwrap_or_default();
    if svid.id() != vetted.id() || !svid.is_for(vetted.public_key()) || valid > lifetime + BACKDATE
    {
        return Err(failed(
            "NotAsVetted",
            "what was issued is not what was asked for; nothing is given out",
        ));
    }
    if valid < SHORTEST {
        return Err(failed(
            "LifetimeTooShort",
            "Kubernetes takes no certificate for less than an hour, and the CA's own ends before \
             that",
        ));
    }
    Ok(())
}

fn denied(reason: &'static str, message: String) -> Refusal {
    Refusal {
        outcome: Outcome::Denied,
        reason,
        message,
    }
}

fn failed(reason: &'static str, message: &str) -> Refusal {
    Refusal {
        outcome: Outcome::Failed,
        reason,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_pki::csr;
    use bulkhead_pki::key::PrivateKey;
    use bulkhead_pki::pem;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn spec() -> Spec {
        Spec {
            pod_name: "cart-0".to_owned(),
            pod_uid: "1".to_owned(),
            service_account_name: "cart".to_owned(),
            service_account_uid: "2".to_owned(),
            node_name: "node".to_owned(),
            max_expiration_seconds: Some(DEFAULT_LIMIT),
            stub: Some(stub(None)),
            ..Spec::default()
        }
    }

    fn stub(id: Option<&str>) -> ByteString {
        let key = PrivateKey::generate().unwrap();
        let id = id.map(|id| id.parse().unwrap());
        let request = csr::create(&key, id.as_ref()).unwrap();
        ByteString(
            pem::decode(&request, 10_000)
                .unwrap()
                .remove(0)
                .der
                .to_vec(),
        )
    }

    fn caller() -> Caller {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let pod = CallerPod {
            name: "cart-0".to_owned(),
            uid: "1".to_owned(),
        };
        let username = "system:serviceaccount:shop:cart";
        Caller::service_account(
            &domain,
            username,
            Some(pod),
            true,
            Source::PodCertificateRequest,
        )
        .unwrap()
    }

    fn lifetimes(max: Duration) -> Lifetimes {
        Lifetimes {
            default: max,
            max,
            root: 3650 * DAY,
            intermediate: 365 * DAY,
        }
    }

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn pod(uid: &str, account: &str, node: &str) -> Pod {
        object(json!({
            "metadata": {"name": "cart-0", "uid": uid},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": []},
        }))
    }

    fn account(uid: &str) -> ServiceAccount {
        object(json!({"metadata": {"name": "cart", "uid": uid}}))
    }

    #[test]
    fn a_request_is_for_the_pod_that_it_names_and_no_other() {
        let right = (pod("1", "cart", "node"), account("2"));
        assert_eq!(is_of(&spec(), Some(&right.0), Some(&right.1)), Ok(()));
        for (what, pod, account) in [
            (
                "a predecessor of the same name",
                pod("9", "cart", "node"),
                account("2"),
            ),
            (
                "another ServiceAccount",
                pod("1", "bank", "node"),
                account("2"),
            ),
            ("another node", pod("1", "cart", "other"), account("2")),
            (
                "a ServiceAccount made anew",
                pod("1", "cart", "node"),
                account("9"),
            ),
        ] {
            assert!(
                is_of(&spec(), Some(&pod), Some(&account)).is_err(),
                "{what}"
            );
        }
        assert!(is_of(&spec(), None, Some(&right.1)).is_err(), "no pod");
        assert!(is_of(&spec(), Some(&right.0), None).is_err(), "no account");
    }

    #[test]
    fn all_of_the_validity_is_within_what_was_asked_for() {
        let lifetime = |seconds, max| {
            let spec = Spec {
                max_expiration_seconds: Some(seconds),
                ..spec()
            };
            asked(&spec, &caller(), &lifetimes(max)).map(|(_, lifetime)| lifetime)
        };
        assert_eq!(lifetime(3600, DAY), Ok(SHORTEST - BACKDATE));
        assert_eq!(lifetime(7_862_400, DAY), Ok(DAY));
        let short = lifetime(86_400, Duration::from_secs(1800)).unwrap_err();
        assert_eq!(
            (short.outcome, short.reason),
            (Outcome::Failed, "LifetimeTooShort")
        );
    }

    #[test]
    fn what_a_pod_may_not_have_is_denied_with_kubernetes_own_words() {
        let reason = |spec: Spec| {
            let refusal = asked(&spec, &caller(), &lifetimes(DAY)).unwrap_err();
            (refusal.outcome, refusal.reason)
        };
        let annotations = [("example.org/a".to_owned(), "b".to_owned())].into();
        let with_annotations = Spec {
            unverified_user_annotations: annotations,
            ..spec()
        };
        assert_eq!(
            reason(with_annotations),
            (Outcome::Denied, "InvalidUnverifiedUserAnnotations")
        );
        let foreign = Spec {
            stub: Some(stub(Some("spiffe://cluster.local/ns/shop/sa/bank"))),
            ..spec()
        };
        assert_eq!(reason(foreign), (Outcome::Denied, "ForeignName"));
        let garbage = Spec {
            stub: Some(ByteString(b"garbage".to_vec())),
            ..spec()
        };
        assert_eq!(reason(garbage), (Outcome::Denied, "MalformedRequest"));
        let old = Spec {
            stub: None,
            ..spec()
        };
        assert_eq!(reason(old), (Outcome::Failed, "OlderKubernetes"));
    }
}
