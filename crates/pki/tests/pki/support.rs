//! A small mesh to test with: a root, an intermediate, and workloads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use rcgen::{CertificateParams, DistinguishedName, Issuer, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, UnixTime};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Handshakes go by the machine's clock, so the tests do too.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(UnixTime::now().as_secs())
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(crate) fn workload(name: &str) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), "shop", name).unwrap()
}

pub(crate) struct Mesh {
    pub(crate) root: Authority,
    pub(crate) intermediate: Authority,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::of(&trust_domain())
    }

    pub(crate) fn of(trust_domain: &TrustDomain) -> Self {
        let root = Authority::new_root(trust_domain, 10 * YEAR, now()).unwrap();
        let intermediate = root.new_intermediate(YEAR, now()).unwrap();
        Self { root, intermediate }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        let roots = Roots::new([self.root.certificate().clone()]).unwrap();
        TrustBundle::new(self.root.trust_domain().clone(), roots)
    }

    pub(crate) fn identity(&self, id: &SpiffeId) -> WorkloadIdentity {
        let key = PrivateKey::generate().unwrap();
        let chain = self
            .intermediate
            .issue_svid(id, key.public_key(), DAY, now())
            .unwrap();
        WorkloadIdentity::new(id, &key, chain, self.bundle(), now()).unwrap()
    }

    /// A chain whose leaf says whatever `change` makes of a good one, signed by
    /// the mesh's own intermediate: what only a CA that breaks the rules makes.
    pub(crate) fn leaf_with(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let key = PrivateKey::generate().unwrap();
        let mut params = leaf_params();
        change(&mut params);
        let signer = Issuer::from_ca_cert_der(
            self.intermediate.certificate().der(),
            self.intermediate.key().clone(),
        )
        .unwrap();
        let leaf = params.signed_by(&key, &signer).unwrap();
        vec![leaf.into(), self.intermediate.certificate().der().clone()]
    }
}

/// The parameters of a good leaf.
pub(crate) fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(workload("cart").as_str())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + HOUR).into();
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}
