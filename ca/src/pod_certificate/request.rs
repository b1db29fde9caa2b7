//! A PodCertificateRequest, as far as it matters here: of certificates.k8s.io,
//! v1 and v1beta1, which have these fields in common.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Object;
use serde::{Deserialize, Serialize};

pub(super) type PodCertificateRequest = Object<Spec, Status>;

/// What kubelet asks for, and of whom the API server has checked it to be: a pod
/// that runs on the node that asks, with that ServiceAccount.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) pod_name: String,
    #[serde(rename = "podUID")]
    pub(super) pod_uid: String,
    pub(super) service_account_name: String,
    #[serde(rename = "serviceAccountUID")]
    pub(super) service_account_uid: String,
    pub(super) node_name: String,
    /// The longest that the certificate may be valid, in seconds.
    #[serde(default)]
    pub(super) max_expiration_seconds: Option<u64>,
    /// A PKCS #10 request of the key, empty otherwise; Kubernetes 1.36 and newer.
    #[serde(rename = "stubPKCS10Request", default)]
    pub(super) stub: Option<ByteString>,
    /// What the pod's author asks of the signer; nobody has checked it.
    #[serde(default)]
    pub(super) unverified_user_annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

/// Whether somebody has answered it, in whatever way.
pub(super) fn is_answered(request: &PodCertificateRequest) -> bool {
    let conditions = request.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|conditions| !conditions.is_empty())
}

/// To the second, as certificates have it.
pub(super) fn time(time: SystemTime) -> Time {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = std::time::Duration::from_secs(since.unwrap_or_default().as_secs());
    Time(
        (SystemTime::UNIX_EPOCH + seconds)
            .try_into()
            .unwrap_or_default(),
    )
}
