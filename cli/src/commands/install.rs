//! `bulkhead install`: the chart as Helm renders it, for those who install
//! without Helm. There is no second template engine: what cannot be said by the
//! few options here is said to the chart.

use std::io::Write;
use std::str::FromStr;

use clap::Args;
use serde_json::Value;

use crate::manifest::Stream;

/// What `scripts/render-manifests` wrote when this program was made.
const MANIFESTS: &str = include_str!("../../manifests/install.yaml");

/// The variable that names the image which the webhook puts into pods.
const PROXY_IMAGE: &str = "BULKHEAD_WEBHOOK_PROXY_IMAGE";

/// Kinds that older API servers do not know, with the first version that does.
const NEWER_KINDS: &[(&str, KubernetesVersion)] = &[
    ("MutatingAdmissionPolicy", KubernetesVersion(1, 36)),
    ("MutatingAdmissionPolicyBinding", KubernetesVersion(1, 36)),
];

/// The oldest one that everything else is made for, as the chart says it too.
const OLDEST: KubernetesVersion = KubernetesVersion(1, 30);

/// Print the manifests that install Bulkhead, for `kubectl apply -f -`.
///
/// They are what the Helm chart makes by default, for the namespace
/// bulkhead-system. Whoever wants to set more than these options do uses the
/// chart: `helm template` prints manifests too.
#[derive(Debug, Args)]
pub struct Install {
    /// Where the images are, in place of ghcr.io/bulkhead
    #[arg(long)]
    registry: Option<String>,
    /// The images' tag, in place of this program's version
    #[arg(long)]
    tag: Option<String>,
    /// The cluster's version, such as 1.34: kinds that it does not know are left
    /// out
    #[arg(long, value_name = "VERSION", default_value = "1.36")]
    kubernetes_version: KubernetesVersion,
    /// Leave out the kind PeerAuthentication, for a cluster that has Istio's
    #[arg(long)]
    skip_istio_crds: bool,
}

impl Install {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut stream = Stream::parse(MANIFESTS)?;
        stream.retain(|object| self.is_wanted(object));
        let manifests = stream.edited(|_, object| Ok(self.place_images(object)))?;
        Ok(std::io::stdout().lock().write_all(manifests.as_bytes())?)
    }

    fn is_wanted(&self, object: &Value) -> bool {
        let is_known = NEWER_KINDS
            .iter()
            .all(|(kind, since)| object["kind"] != *kind || *since <= self.kubernetes_version);
        let is_istios = object["kind"] == "CustomResourceDefinition"
            && object["spec"]["group"] == "security.istio.io";
        is_known && !(is_istios && self.skip_istio_crds)
    }

    /// Says where an object's images are; whether that changed anything.
    fn place_images(&self, object: &mut Value) -> bool {
        let mut is_changed = false;
        let containers = object
            .pointer_mut("/spec/template/spec/containers")
            .and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            is_changed |= self.place(&mut container["image"]);
            let variables = container["env"].as_array_mut();
            for variable in variables.into_iter().flatten() {
                if variable["name"] == PROXY_IMAGE {
                    is_changed |= self.place(&mut variable["value"]);
                }
            }
        }
        is_changed
    }

    fn place(&self, image: &mut Value) -> bool {
        let Some(reference) = image.as_str() else {
            return false;
        };
        // The chart's own references are `registry/name:tag`, without a port.
        let (path, tag) = reference.split_once(':').unwrap_or((reference, ""));
        let (registry, name) = path.rsplit_once('/').unwrap_or(("", path));
        let registry = self.registry.as_deref().unwrap_or(registry);
        let placed = format!(
            "{}/{name}:{}",
            registry.trim_end_matches('/'),
            self.tag.as_deref().unwrap_or(tag)
        );
        let is_changed = placed != reference;
        *image = placed.into();
        is_changed
    }
}

/// Major and minor version of an API server.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct KubernetesVersion(u32, u32);

impl FromStr for KubernetesVersion {
    type Err = String;

    /// Reads `1.34`, and what `kubectl version` prints: `v1.34.4-gke.1000`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim_start_matches('v').split('.');
        let mut number = || {
            // EKS calls itself `34+`.
            let part = parts.next()?.trim_end_matches('+');
            part.parse().ok()
        };
        let (Some(major), Some(minor)) = (number(), number()) else {
            return Err(format!("{text:?} is no version of Kubernetes; write 1.34"));
        };
        let version = Self(major, minor);
        if version < OLDEST {
            return Err(format!(
                "Kubernetes {major}.{minor} lacks what Bulkhead is made of; it takes {}.{} or newer",
                OLDEST.0, OLDEST.1
            ));
        }
        Ok(version)
    }
}
