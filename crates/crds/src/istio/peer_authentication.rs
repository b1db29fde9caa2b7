//! PeerAuthentication (`security.istio.io`, `v1` and `v1beta1`, which have the
//! same fields).

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_core::policy::{MtlsMode, UnknownMode, peer_authentication as core};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, GroupVersionKind};
use serde::{Deserialize, Serialize};

/// The API group.
pub const GROUP: &str = "security.istio.io";
/// The versions that are read, the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// The kind.
pub const KIND: &str = "PeerAuthentication";

/// The resource in the API, in one of [`VERSIONS`].
pub fn api_resource(version: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, version, KIND))
}

/// A PeerAuthentication as people write it. Fields that are not known here are
/// Istio's affair and are left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PeerAuthentication {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub selector: Option<WorkloadSelector>,
    pub mtls: Option<Mtls>,
    /// By port number, which JSON writes as a text.
    pub port_level_mtls: Option<BTreeMap<String, Mtls>>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    pub match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Mtls {
    /// `UNSET`, `STRICT`, `PERMISSIVE` or `DISABLE`.
    pub mode: Option<String>,
}

impl Mtls {
    fn mode(&self) -> Result<Option<MtlsMode>, UnknownMode> {
        match self.mode.as_deref() {
            None | Some("UNSET") => Ok(None),
            // In any other case Istio's schema refuses it.
            Some(text) => text.parse().map(Some),
        }
    }
}

impl TryFrom<PeerAuthentication> for core::PeerAuthentication {
    type Error = PeerAuthenticationError;

    fn try_from(resource: PeerAuthentication) -> Result<Self, Self::Error> {
        let PeerAuthentication { metadata, spec } = resource;
        let mode = spec.mtls.unwrap_or_default().mode();
        let ports = spec.port_level_mtls.unwrap_or_default();
        let port_modes = ports.into_iter().map(|(port, mtls)| {
            let number = port.parse().ok().filter(|number| *number > 0);
            let number = number.ok_or_else(|| PeerAuthenticationError::Port(shown(&port)))?;
            let mode = mtls
                .mode()
                .map_err(|error| PeerAuthenticationError::PortMode(number, error))?;
            Ok((number, mode))
        });
        let created = metadata.creation_timestamp;
        Ok(Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            // One that is in no API server is as old as can be.
            created: created.map_or(UNIX_EPOCH, |time| SystemTime::from(time.0)),
            selector: spec
                .selector
                .and_then(|selector| selector.match_labels)
                .unwrap_or_default(),
            mode: mode.map_err(PeerAuthenticationError::Mode)?,
            port_modes: port_modes.collect::<Result<_, PeerAuthenticationError>>()?,
        })
    }
}

fn shown(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Why a PeerAuthentication cannot be honoured.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerAuthenticationError {
    #[error("spec.mtls.mode: {0}, or UNSET")]
    Mode(UnknownMode),
    #[error("spec.portLevelMtls has {0:?}, which is no port")]
    Port(String),
    #[error("spec.portLevelMtls, port {0}: {1}, or UNSET")]
    PortMode(u16, UnknownMode),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<core::PeerAuthentication, PeerAuthenticationError> {
        serde_json::from_value::<PeerAuthentication>(value)
            .unwrap()
            .try_into()
    }

    #[test]
    fn istios_usual_yaml_is_read() {
        let policy = read(json!({
            "apiVersion": "security.istio.io/v1beta1",
            "kind": "PeerAuthentication",
            "metadata": {
                "name": "cart", "namespace": "shop",
                "creationTimestamp": "2026-01-02T03:04:05Z",
            },
            "spec": {
                "selector": {"matchLabels": {"app": "cart"}},
                "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"8080": {"mode": "DISABLE"}, "9090": {"mode": "UNSET"}, "7070": {}},
            },
        }))
        .unwrap();
        assert_eq!(
            (policy.namespace.as_str(), policy.name.as_str()),
            ("shop", "cart")
        );
        assert_eq!(policy.selector["app"], "cart");
        assert_eq!(policy.mode, Some(MtlsMode::Strict));
        assert_eq!(
            policy.port_modes,
            [(8080, Some(MtlsMode::Disable)), (9090, None), (7070, None)].into()
        );
        assert!(policy.created > UNIX_EPOCH);
    }

    #[test]
    fn a_policy_that_says_nothing_inherits() {
        for spec in [
            json!({}),
            json!({"mtls": null}),
            json!({"mtls": {}}),
            json!({"mtls": {"mode": "UNSET"}, "selector": {}, "portLevelMtls": null}),
        ] {
            let policy = read(json!({"metadata": {"name": "x"}, "spec": spec})).unwrap();
            assert_eq!((policy.mode, policy.selector.len()), (None, 0));
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_said() {
        for spec in [
            json!({"mtls": {"mode": "ON"}}),
            json!({"portLevelMtls": {"http": {"mode": "STRICT"}}}),
            json!({"portLevelMtls": {"0": {"mode": "STRICT"}}}),
            json!({"portLevelMtls": {"65536": {"mode": "STRICT"}}}),
            json!({"portLevelMtls": {"80": {"mode": "MAYBE"}}}),
        ] {
            let error = read(json!({"spec": spec})).unwrap_err();
            assert!(error.to_string().starts_with("spec."), "{error}");
        }
    }
}
