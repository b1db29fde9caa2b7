//! Annotations of other meshes that change nothing here.

use super::find;
use super::is_relevant;

/// The most names that are reported of one pod.
const MAX_REPORTED: usize = 10;

/// Prefixes under which other meshes configure their sidecars. What they write
/// themselves (`sidecar.istio.io/status`, `linkerd.io/proxy-version`) is no
/// setting.
const SETTINGS: &[&str] = &[
    "config.alpha.linkerd.io/",
    "config.beta.linkerd.io/",
    "config.linkerd.io/",
    "proxy.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
];

/// Those that are no one's setting, or the decision's.
const SILENT: &[&str] = &["sidecar.istio.io/status", "sidecar.istio.io/inject"];

/// The names among these that configure another mesh's sidecar in a way that
/// Bulkhead has no annotation for. People should be told: what they ask for does
/// not happen.
pub fn unhonoured<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    names
        .into_iter()
        .filter(|name| is_relevant(name))
        .filter(|name| SETTINGS.iter().any(|prefix| name.starts_with(prefix)))
        .filter(|name| !SILENT.contains(name) && find(name).is_none())
        .take(MAX_REPORTED)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_nothing_reads_are_reported() {
        let names = [
            "sidecar.istio.io/proxyCPU",
            "sidecar.istio.io/status",
            "sidecar.istio.io/extraStatTags",
            "linkerd.io/proxy-version",
            "config.linkerd.io/proxy-version",
            "prometheus.io/scrape",
        ];
        assert_eq!(
            unhonoured(names),
            [
                "sidecar.istio.io/extraStatTags",
                "config.linkerd.io/proxy-version"
            ]
        );
    }
}
