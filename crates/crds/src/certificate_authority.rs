//! The certificate authority, as people see and steer it: one object, made by the
//! CA in its own namespace.
//!
//! ```text
//!  people ── spec.rootGeneration ──▶ CA ── status: authorities, phase, conditions
//!  proxies ── what they hold ──▶ control ── status.proxies
//! ```
//!
//! A root has a generation: the first is 1, a new one is one more than the highest
//! that there ever was. To ask for that one starts a rotation; to ask for an older
//! one that is not retired yet undoes it.
//!
//! The status has two writers, each with its own field manager: control owns
//! `status.proxies`, the CA owns the rest.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group.
pub const GROUP: &str = "ca.bulkhead.io";
/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";
/// The name of the one object.
pub const NAME: &str = "bulkhead";
/// Missing proxies that are named; the rest are counted.
pub const MISSING_NAMED: usize = 100;

/// What people ask of the certificate authority. Nothing, as a rule.
#[derive(
    Clone, CustomResource, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize,
)]
#[kube(
    group = "ca.bulkhead.io",
    version = "v1alpha1",
    kind = "CertificateAuthority",
    plural = "certificateauthorities",
    shortname = "bca",
    namespaced,
    status = "CertificateAuthorityStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "The certificate authority of the mesh, and the rotation of its root",
    validation = Rule::new("self.metadata.name == 'bulkhead'")
        .message("there is one certificate authority, and its name is bulkhead"),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Root","type":"integer","jsonPath":".status.rootGeneration"}"#,
    printcolumn = r#"{"name":"Proxies","type":"string","jsonPath":".status.proxies.summary","description":"Proxies that hold the trust bundle, of all"}"#,
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".status.expires","description":"When the first of the authorities that sign ends"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct CertificateAuthoritySpec {
    /// The root that is to sign; absent: whichever signs now. One more than the
    /// highest of status.authorities starts a rotation; an older one that is not
    /// retired yet undoes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 4294967295u32))]
    pub root_generation: Option<u32>,
    /// Permission to go on to this root although proxies lack it. Those that are
    /// named in status.proxies.missing then fail until they have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 4294967295u32))]
    pub force_generation: Option<u32>,
}

/// How the certificate authority stands.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateAuthorityStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The root that signs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 4294967295u32))]
    pub root_generation: Option<u32>,
    /// The root that is to sign at the end of the rotation; the same, where there
    /// is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 1, max = 4294967295u32))]
    pub target_generation: Option<u32>,
    /// When the first of the authorities that sign ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
    /// What workloads are given to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle: Option<TrustBundleStatus>,
    /// Every authority that there is, and the last that were retired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Authority>,
    /// What signs above our own authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// What proxies hold; written by control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxies: Option<Proxies>,
    /// Ready, RotationProgressing, Expiring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The conditions of the status, by type.
pub mod condition {
    /// Certificates are issued.
    pub const READY: &str = "Ready";
    /// A root is on its way in or out.
    pub const ROTATION_PROGRESSING: &str = "RotationProgressing";
    /// An authority has less of its life left than it should.
    pub const EXPIRING: &str = "Expiring";
}

/// How far a rotation of the root is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Phase {
    /// There is none.
    Settled,
    /// The new root is on its way to every proxy.
    Publishing,
    /// The new root begins to sign.
    Switching,
    /// Proxies get certificates below the new root.
    Renewing,
    /// The old root leaves.
    Retiring,
    /// It cannot go on; the message says why.
    Blocked,
}

impl Phase {
    pub const ALL: [Self; 6] = [
        Self::Settled,
        Self::Publishing,
        Self::Switching,
        Self::Renewing,
        Self::Retiring,
        Self::Blocked,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "Settled",
            Self::Publishing => "Publishing",
            Self::Switching => "Switching",
            Self::Renewing => "Renewing",
            Self::Retiring => "Retiring",
            Self::Blocked => "Blocked",
        }
    }
}

/// The trust bundle that workloads are given.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleStatus {
    /// Names exactly this set of roots: lower-case hexadecimal.
    pub id: String,
    /// It grows with every change.
    #[schemars(with = "i64", range(min = 0))]
    pub sequence: u64,
    /// How many roots are in it.
    #[schemars(with = "i32", range(min = 0))]
    pub roots: u32,
}

/// A key that signs, or did, or will.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    pub kind: AuthorityKind,
    #[schemars(with = "i64", range(min = 1, max = 4294967295u32))]
    pub generation: u32,
    pub state: AuthorityState,
    /// SHA-256 of the certificate in lower-case hexadecimal; of a key for JWTs,
    /// its key ID.
    pub fingerprint: String,
    /// The certificate's serial number in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// Such as ECDSA P-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_type: Option<String>,
    /// Who signed it; absent where it did so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// What an authority signs.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorityKind {
    /// Intermediates; workloads trust it.
    Root,
    /// Workloads' certificates.
    Intermediate,
    /// Workloads' JWT-SVIDs.
    Jwt,
}

impl AuthorityKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Jwt => "jwt",
        }
    }
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an authority is in its life.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorityState {
    /// Made and kept; nobody has been told.
    Prepared,
    /// Everybody is told of it; it signs nothing.
    Published,
    /// It signs.
    Active,
    /// It is gone, and its key destroyed.
    Retired,
}

impl AuthorityState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for AuthorityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What signs above our own authorities.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    pub kind: UpstreamKind,
    pub signs: UpstreamSigns,
    pub state: UpstreamState,
    /// Why it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it last signed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Time>,
}

/// Which upstream there is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamKind {
    /// None: the root is our own.
    SelfSigned,
    /// PEM files.
    Files,
    CertManager,
    Vault,
}

/// What the upstream signs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamSigns {
    /// Our intermediates, which sign leaves.
    #[default]
    Intermediate,
    /// Each leaf.
    Leaf,
}

impl UpstreamSigns {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intermediate => "intermediate",
            Self::Leaf => "leaf",
        }
    }
}

/// Whether the upstream did what it was last asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamState {
    Ok,
    Failing,
}

/// What the proxies of the mesh hold, as control knows it, and the replicas of
/// control themselves, whose certificates every proxy verifies.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxies {
    /// Pods with a sidecar that neither end nor have ended, and control's replicas.
    #[schemars(with = "i32", range(min = 0))]
    pub total: u32,
    /// Those of them that hold the trust bundle.
    #[schemars(with = "i32", range(min = 0))]
    pub holding: u32,
    /// Those of them whose certificate is below the root that signs.
    #[schemars(with = "i32", range(min = 0))]
    pub renewed: u32,
    /// Holding of all, such as 97/100.
    pub summary: String,
    /// The id of the trust bundle that they were compared with.
    pub bundle: String,
    /// The fingerprint of the root that they were compared with.
    pub signing_root: String,
    /// Those that do not hold it or are not renewed, and why; the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub missing: Vec<MissingProxy>,
    /// When this was known to be so. It is written anew at least each 30 s, so
    /// that an older one says that control is away.
    pub at: Time,
}

/// A proxy that lacks something.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingProxy {
    /// Namespace and name, with a slash between them.
    pub pod: String,
    /// What it lacks, and why, for people.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_about_which_nobody_said_anything_asks_for_nothing() {
        let object = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
        let written = serde_json::to_value(&object).unwrap();
        assert_eq!(written["spec"], serde_json::json!({}));
        assert_eq!(written["apiVersion"], format!("{GROUP}/{VERSION}"));
    }

    #[test]
    fn what_the_status_names_is_shown_as_it_is_stored() {
        for kind in [
            AuthorityKind::Root,
            AuthorityKind::Intermediate,
            AuthorityKind::Jwt,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for state in [
            AuthorityState::Prepared,
            AuthorityState::Published,
            AuthorityState::Active,
            AuthorityState::Retired,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        for signs in [UpstreamSigns::Intermediate, UpstreamSigns::Leaf] {
            assert_eq!(serde_json::to_value(signs).unwrap(), signs.as_str());
        }
    }
}
