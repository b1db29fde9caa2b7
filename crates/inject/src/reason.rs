//! Why a pod was injected, skipped or refused: one word each, which is the
//! metric label, the log field and the reason of the Event. Words never change
//! meaning: people write alerts on them.

/// Why a pod is injected: who asked for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum InjectReason {
    PodLabel,
    PodAnnotation,
    NamespaceLabel,
    NamespaceAnnotation,
    Default,
}

impl InjectReason {
    pub const ALL: [Self; 5] = [
        Self::PodLabel,
        Self::PodAnnotation,
        Self::NamespaceLabel,
        Self::NamespaceAnnotation,
        Self::Default,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodLabel => "enabled_by_pod_label",
            Self::PodAnnotation => "enabled_by_pod_annotation",
            Self::NamespaceLabel => "enabled_by_namespace_label",
            Self::NamespaceAnnotation => "enabled_by_namespace_annotation",
            Self::Default => "enabled_by_default",
        }
    }
}

/// Why a pod is left as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum SkipReason {
    HostNetwork,
    Windows,
    OwnPod,
    SystemNamespace,
    PodLabel,
    PodAnnotation,
    NamespaceLabel,
    NamespaceAnnotation,
    NotRequested,
    OtherMesh,
}

impl SkipReason {
    pub const ALL: [Self; 10] = [
        Self::HostNetwork,
        Self::Windows,
        Self::OwnPod,
        Self::SystemNamespace,
        Self::PodLabel,
        Self::PodAnnotation,
        Self::NamespaceLabel,
        Self::NamespaceAnnotation,
        Self::NotRequested,
        Self::OtherMesh,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
            Self::OwnPod => "own_pod",
            Self::SystemNamespace => "system_namespace",
            Self::PodLabel => "disabled_by_pod_label",
            Self::PodAnnotation => "disabled_by_pod_annotation",
            Self::NamespaceLabel => "disabled_by_namespace_label",
            Self::NamespaceAnnotation => "disabled_by_namespace_annotation",
            Self::NotRequested => "not_requested",
            Self::OtherMesh => "other_mesh",
        }
    }

    /// What it means, for the person who looks at the workload.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::HostNetwork => {
                "the pod uses the host's network, where redirection would take in the whole node"
            }
            Self::Windows => "the pod runs on Windows, and the sidecar on Linux only",
            Self::OwnPod => "the pod is a part of Bulkhead itself",
            Self::SystemNamespace => "the namespace belongs to Kubernetes itself",
            Self::PodLabel => "a label of the pod disables injection",
            Self::PodAnnotation => "an annotation of the pod disables injection",
            Self::NamespaceLabel => "a label of the namespace disables injection",
            Self::NamespaceAnnotation => "an annotation of the namespace disables injection",
            Self::NotRequested => {
                "neither the pod nor its namespace asks for injection, and it is off by default"
            }
            Self::OtherMesh => {
                "the pod already carries another mesh's sidecar, and two would fight over its \
                 traffic"
            }
        }
    }

    /// Whether somebody who looks at the workload would want to know: nobody
    /// said that this pod should be left alone, and yet it is.
    pub fn is_surprising(self) -> bool {
        matches!(self, Self::HostNetwork | Self::Windows | Self::OtherMesh)
    }
}

/// Why a pod is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum RefuseReason {
    /// An annotation, or a label that decides about injection, has a value that
    /// it cannot have.
    InvalidAnnotation,
    /// A `bulkhead.io/` annotation that does not exist.
    UnknownAnnotation,
    /// The application uses a port that belongs to the sidecar.
    ReservedPort,
    /// A container or volume has a name that belongs to the sidecar.
    ReservedName,
    /// A probe points to the sidecar, and what it was before is lost.
    LostProbe,
    /// The document is not a pod.
    MalformedPod,
    /// The pod has more containers than anything that runs.
    TooLarge,
}

impl RefuseReason {
    pub const ALL: [Self; 7] = [
        Self::InvalidAnnotation,
        Self::UnknownAnnotation,
        Self::ReservedPort,
        Self::ReservedName,
        Self::LostProbe,
        Self::MalformedPod,
        Self::TooLarge,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidAnnotation => "invalid_annotation",
            Self::UnknownAnnotation => "unknown_annotation",
            Self::ReservedPort => "reserved_port",
            Self::ReservedName => "reserved_name",
            Self::LostProbe => "lost_probe",
            Self::MalformedPod => "malformed_pod",
            Self::TooLarge => "too_large",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn words() -> Vec<&'static str> {
        InjectReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .chain(SkipReason::ALL.iter().map(|reason| reason.as_str()))
            .chain(RefuseReason::ALL.iter().map(|reason| reason.as_str()))
            .collect()
    }

    #[test]
    fn every_word_is_explained_in_the_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/injection.md");
        let page = std::fs::read_to_string(path).unwrap();
        let explained: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
            .map(|(word, _)| word)
            .collect();
        assert_eq!(explained, words());
    }

    #[test]
    fn words_are_unique_and_fit_a_metric_label() {
        let words = words();
        let unique: BTreeSet<_> = words.iter().collect();
        assert_eq!(unique.len(), words.len());
        assert!(words.iter().all(|word| {
            word.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        }));
    }
}
