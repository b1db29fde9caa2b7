//! The labels and annotations that say whether a pod is injected.

use super::INJECT;

/// Where somebody may say whether a pod is injected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    PodLabel,
    PodAnnotation,
    NamespaceLabel,
    NamespaceAnnotation,
}

impl Place {
    /// In words that follow "the".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodLabel => "pod's label",
            Self::PodAnnotation => "pod's annotation",
            Self::NamespaceLabel => "namespace's label",
            Self::NamespaceAnnotation => "namespace's annotation",
        }
    }
}

/// A place, and the names that are read there: Bulkhead's own, then those of
/// Istio and Linkerd where it is absent.
#[derive(Clone, Copy, Debug)]
pub struct InjectSource {
    pub place: Place,
    pub names: &'static [&'static str],
}

const ISTIO: &str = "sidecar.istio.io/inject";
const ISTIO_NAMESPACE: &str = "istio-injection";
const LINKERD: &str = "linkerd.io/inject";

/// All places in the order in which they are asked; the first answer counts.
pub const INJECT_SOURCES: &[InjectSource] = &[
    InjectSource {
        place: Place::PodLabel,
        names: &[INJECT, ISTIO],
    },
    InjectSource {
        place: Place::PodAnnotation,
        names: &[INJECT, ISTIO, LINKERD],
    },
    InjectSource {
        place: Place::NamespaceLabel,
        names: &[INJECT, ISTIO_NAMESPACE, LINKERD],
    },
    InjectSource {
        place: Place::NamespaceAnnotation,
        names: &[INJECT, LINKERD],
    },
];

/// What a value of one of these names says: inject, or do not.
///
/// Linkerd's `ingress` asks for a sidecar too. What it changes there, routing by
/// header instead of by address, is something that Bulkhead's proxy never does.
pub fn parse_inject(name: &str, value: &str) -> Result<bool, &'static str> {
    match value {
        "enabled" | "true" => Ok(true),
        "disabled" | "false" => Ok(false),
        "ingress" if name == LINKERD => Ok(true),
        _ => Err("allowed: enabled or disabled (also true or false)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_asks_for_bulkheads_own_name_first() {
        for source in INJECT_SOURCES {
            assert_eq!(source.names[0], INJECT);
        }
    }

    #[test]
    fn values_are_read_and_nothing_is_guessed() {
        for (name, value, expected) in [
            (INJECT, "enabled", Some(true)),
            (INJECT, "disabled", Some(false)),
            (ISTIO, "true", Some(true)),
            (ISTIO_NAMESPACE, "disabled", Some(false)),
            (LINKERD, "ingress", Some(true)),
            (INJECT, "ingress", None),
            (INJECT, "Enabled", None),
            (INJECT, "", None),
            (INJECT, "yes", None),
        ] {
            assert_eq!(parse_inject(name, value).ok(), expected, "{name} {value}");
        }
    }
}
