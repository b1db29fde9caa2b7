//! Everything about a pod's sidecar that an annotation can change: the
//! installation's settings first, then what the namespace and the pod say.

use crate::identity::TrustDomain;
use crate::redirect::RedirectConfig;
use crate::resources::{Level, Resources};
use crate::sidecar::SidecarConfig;

/// The settings of one pod's sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSettings {
    /// What the proxy is told.
    pub sidecar: SidecarConfig,
    /// Who chose `sidecar.opaque_ports`: what a person wrote about a port wins
    /// over the port's name, and the name wins over the installation's list.
    pub opaque_ports_level: Level,
    /// What the init container is told.
    pub redirect: RedirectConfig,
    pub resources: Resources,
    /// The image of the proxy and of the init container.
    pub image: String,
    pub image_pull_policy: PullPolicy,
    /// Run the proxy as a native sidecar (an init container that is restarted,
    /// Kubernetes 1.29 and newer), not as a container beside the application.
    pub native_sidecar: bool,
    /// Start the application's containers only when the proxy is ready.
    pub hold_application: bool,
    /// Let kubelet ask the proxy for the application's probes, so that they
    /// pass whatever the mTLS mode.
    pub rewrite_probes: bool,
}

impl PodSettings {
    /// The settings where nobody said anything but which image to run.
    pub fn new(trust_domain: TrustDomain, image: String) -> Self {
        Self {
            // The kubelet fills in who the pod is.
            sidecar: SidecarConfig::new(trust_domain, String::new(), String::new()),
            opaque_ports_level: Level::Installation,
            redirect: RedirectConfig::default(),
            resources: Resources::default(),
            image,
            image_pull_policy: PullPolicy::IfNotPresent,
            native_sidecar: true,
            hold_application: true,
            rewrite_probes: true,
        }
    }
}

/// When the kubelet fetches an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub const ALL: [Self; 3] = [Self::Always, Self::IfNotPresent, Self::Never];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl std::str::FromStr for PullPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or("write Always, IfNotPresent or Never")
    }
}
