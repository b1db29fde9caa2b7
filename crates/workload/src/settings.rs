//! Who a workload is, and whom it asks for its certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_core::sidecar::SidecarConfig;

/// The name of the file with the SPIFFE bundle, beside the PEM file of the roots.
const BUNDLE_DOCUMENT: &str = "bundle.json";

#[derive(Clone, Debug)]
pub struct Settings {
    pub id: SpiffeId,
    pub trust_domain: TrustDomain,
    /// The CA's address, `host:port`; its certificate must have that name.
    pub ca_address: String,
    /// The PEM file with the roots that the CA is verified by. They are the trust
    /// domain's too, so that it, or `bundle.json` beside it, is where changes of
    /// the trust bundle come from between two certificates.
    pub ca_roots_path: String,
    /// The file with the ServiceAccount token that the CA believes.
    pub token_path: String,
    /// The lifetime that is asked for.
    pub certificate_lifetime: Duration,
    /// Whether control tells the CA which trust bundle is held here. Where it does
    /// not, the CA learns it from requests for certificates alone, and waits for
    /// one with each step of a rotation.
    pub reports_to_control: bool,
}

impl Settings {
    /// Those of the workload that a sidecar stands beside.
    pub fn of_sidecar(config: &SidecarConfig, id: SpiffeId) -> Self {
        Self {
            id,
            trust_domain: config.trust_domain.clone(),
            ca_address: config.ca_address.clone(),
            ca_roots_path: config.ca_roots_path.clone(),
            token_path: config.token_path.clone(),
            certificate_lifetime: config.certificate_lifetime,
            reports_to_control: config.control().is_some(),
        }
    }

    /// Where the SPIFFE bundle is, if there is one.
    pub(crate) fn bundle_path(&self) -> PathBuf {
        Path::new(&self.ca_roots_path).with_file_name(BUNDLE_DOCUMENT)
    }
}
