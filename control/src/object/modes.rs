//! What annotations say of mTLS.

use std::collections::BTreeMap;

use bulkhead_core::annotation;
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_core::resources::Level;
use bulkhead_core::sidecar::default_trust_domain;

const MODE: &str = "bulkhead.io/mtls-mode";
const PORT_MODES: &str = "bulkhead.io/port-mtls-modes";

/// What the annotations of one object say of mTLS; nothing where they do not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Modes {
    pub mode: Option<MtlsMode>,
    /// Boxed, since few say so and every pod has the place.
    pub port_modes: Option<Box<BTreeMap<u16, MtlsMode>>>,
}

impl Modes {
    /// Reads annotations. One whose value cannot be used counts as absent, and
    /// is said in the log under the object's name: injection refuses pods that
    /// have such a one.
    pub(super) fn read(annotations: Option<&BTreeMap<String, String>>, of: &str) -> Self {
        let all = annotations.into_iter().flatten();
        let relevant: Vec<_> = all
            .filter(|(name, _)| says(name, MODE) || says(name, PORT_MODES))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if relevant.is_empty() {
            return Self::default();
        }
        let mut modes = Self::default();
        for row in [MODE, PORT_MODES] {
            let mut settings = scratch(default_trust_domain());
            let own = relevant.iter().copied().filter(|(name, _)| says(name, row));
            let own: Vec<_> = own.collect();
            if own.is_empty() {
                continue;
            }
            match annotation::apply(&mut settings, own, Level::Pod) {
                Ok(()) if row == MODE => modes.mode = Some(settings.sidecar.mode),
                Ok(()) => modes.port_modes = Some(Box::new(settings.sidecar.port_modes)),
                Err(errors) => {
                    for error in errors {
                        tracing::warn!(object = of, %error, "an annotation is not used");
                    }
                }
            }
        }
        modes
    }

    /// What a workload accepts by these annotations of its pod, those of its
    /// namespace, and else the installation.
    pub(crate) fn over(&self, namespace: &Self, default: &InboundPolicy) -> InboundPolicy {
        let named = |modes: &Self, name: &str| (*modes != Self::default()).then(|| name.to_owned());
        let port_modes = self.port_modes.as_ref().or(namespace.port_modes.as_ref());
        InboundPolicy {
            name: named(self, "annotations of the pod (bulkhead.io/mtls-mode)")
                .or_else(|| {
                    named(
                        namespace,
                        "annotations of the namespace (bulkhead.io/mtls-mode)",
                    )
                })
                .unwrap_or_else(|| default.name.clone()),
            mode: self.mode.or(namespace.mode).unwrap_or(default.mode),
            port_modes: port_modes.map_or_else(
                || default.port_modes.clone(),
                |modes| BTreeMap::clone(modes),
            ),
        }
    }
}

/// Whether an annotation of this name is the row's, or another mesh's for it.
fn says(name: &str, row: &str) -> bool {
    annotation::find(name).is_some_and(|found| found.name == row)
}

fn scratch(trust_domain: TrustDomain) -> PodSettings {
    PodSettings::new(trust_domain, String::new())
}
