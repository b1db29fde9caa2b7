use std::collections::BTreeSet;

use super::*;
use crate::policy::MtlsMode;
use crate::redirect::Selection;
use crate::sidecar::default_trust_domain;

fn settings() -> PodSettings {
    PodSettings::new(default_trust_domain(), "image:1".into())
}

fn applied(annotations: &[(&str, &str)]) -> Result<PodSettings, Vec<String>> {
    let mut settings = settings();
    match apply(&mut settings, annotations.iter().copied(), Level::Pod) {
        Ok(()) => Ok(settings),
        Err(errors) => Err(errors.iter().map(AnnotationError::to_string).collect()),
    }
}

/// For each row a value that changes something and values that are refused.
const VALUES: &[(&str, &str, &[&str])] = &[
    ("inject", "enabled", &["yes", "", "Enabled"]),
    ("proxy-cpu-request", "50m", &["lots", "-1", "1u", "1 "]),
    ("proxy-cpu-limit", "2", &["", "100 m", "1e400"]),
    ("proxy-memory-request", "64Mi", &["64MB", "64", "64m"]),
    ("proxy-memory-limit", "1Gi", &["1.5.5Gi", "١Gi", "0.1"]),
    ("proxy-ephemeral-storage-request", "16Mi", &["x", "16"]),
    ("proxy-ephemeral-storage-limit", "16Mi", &["16Mi16", "1"]),
    ("mtls-mode", "STRICT", &["on", "", "STRICT;"]),
    (
        "port-mtls-modes",
        "80=STRICT",
        &["80", "80=on", "0=STRICT", "80=STRICT,80=DISABLE"],
    ),
    ("opaque-ports", "27017", &["mongo", "0", "1-70000", "80,"]),
    ("include-inbound-ports", "80", &["all", "0"]),
    ("exclude-inbound-ports", "22", &["*", "ssh"]),
    (
        "include-inbound-cidrs",
        "10.0.0.0/8",
        &["10.0.0.0/99", "host"],
    ),
    ("exclude-inbound-cidrs", "10.0.0.0/8", &["*", "10.0.0.0/8,"]),
    ("include-outbound-ports", "443", &["*", "https"]),
    ("exclude-outbound-ports", "3306", &["9-8", "-"]),
    ("include-outbound-cidrs", "::/0", &["everything", "::/200"]),
    (
        "exclude-outbound-cidrs",
        "169.254.169.254",
        &["metadata", "1.2.3"],
    ),
    ("workload-api", "true", &["yes", "on", ""]),
    ("native-sidecar", "disabled", &["no", "0"]),
    ("hold-application", "false", &["off", "FALSE"]),
    ("drain-duration", "5s", &["5", "2h", "-5s", "forever"]),
    ("rewrite-probes", "disabled", &["never", ""]),
    (
        "proxy-image",
        "registry.example:5000/a/b@sha256:0123",
        &["", "a b", "-x", "a\n- name: b", "a\"b"],
    ),
    ("proxy-image-pull-policy", "Never", &["never", "Sometimes"]),
    ("concurrency", "2", &["0", "65", "two", "+2", "1.5", ""]),
    ("log-level", "debug", &["loud", "info,", "info\ninfo"]),
    ("log-format", "text", &["xml", ""]),
    ("access-log", "enabled", &["apache", "1"]),
    ("trace-sampling", "0.5", &["101", "1.234", "often"]),
];

#[test]
fn every_row_takes_a_good_value_and_its_example_and_refuses_bad_ones() {
    let named: Vec<_> = VALUES
        .iter()
        .map(|(name, ..)| format!("{PREFIX}{name}"))
        .collect();
    let rows: Vec<_> = TABLE.iter().map(|row| row.name.to_owned()).collect();
    assert_eq!(
        named, rows,
        "VALUES has each row of the table, in its order"
    );
    for (row, (_, good, bad)) in TABLE.iter().zip(VALUES) {
        for value in [*good, row.example] {
            let changed = applied(&[(row.name, value)]).unwrap();
            assert!(
                row.name == INJECT || changed != settings(),
                "{} {value}",
                row.name
            );
        }
        for value in *bad {
            let errors = applied(&[(row.name, value)]).unwrap_err();
            let error = errors.join("\n");
            for part in [row.name, &format!("{value:?}"), row.allowed, "pod"] {
                assert!(error.contains(part), "{} {value:?}: {error}", row.name);
            }
        }
    }
}

#[test]
fn what_a_row_shows_it_reads_back() {
    for (row, (_, good, _)) in TABLE.iter().zip(VALUES) {
        if row.name == INJECT {
            continue;
        }
        let changed = applied(&[(row.name, good)]).unwrap();
        let again = applied(&[(row.name, &row.show(&changed))]).unwrap();
        assert_eq!(changed, again, "{}", row.name);
    }
}

#[test]
fn names_are_unique_well_formed_and_documented() {
    let mut seen = BTreeSet::new();
    for row in TABLE {
        let local = row.name.strip_prefix(PREFIX).unwrap();
        assert!(local.len() <= 63, "{local}");
        assert!(
            local
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
            "{local}"
        );
        assert!(row.doc.ends_with('.') && !row.doc.contains("  "), "{local}");
        assert!(!row.allowed.is_empty(), "{local}");
        assert!(seen.insert(row.name), "{local} is there twice");
        for other in row.compatible {
            assert!(seen.insert(other.name), "{} is there twice", other.name);
            assert!(!other.name.starts_with(PREFIX) && is_relevant(other.name));
        }
    }
    assert!(!seen.contains(STATUS));
}

#[test]
fn the_page_of_the_docs_is_made_from_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/annotations.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == markdown(),
        "docs/annotations.md is out of date; run: \
         cargo run -p bulkhead -- explain --markdown > docs/annotations.md"
    );
}

/// Other meshes' names with values in their spelling, and what they amount to.
#[test]
fn other_meshes_names_are_understood_in_their_own_spelling() {
    for (name, value, own, same_as) in [
        (
            "sidecar.istio.io/proxyCPU",
            "100m",
            "proxy-cpu-request",
            "100m",
        ),
        (
            "sidecar.istio.io/proxyCPULimit",
            "2000m",
            "proxy-cpu-limit",
            "2",
        ),
        (
            "sidecar.istio.io/proxyMemory",
            "128Mi",
            "proxy-memory-request",
            "128Mi",
        ),
        (
            "sidecar.istio.io/proxyMemoryLimit",
            "1Gi",
            "proxy-memory-limit",
            "1Gi",
        ),
        (
            "config.linkerd.io/proxy-cpu-request",
            "1",
            "proxy-cpu-request",
            "1",
        ),
        (
            "config.linkerd.io/proxy-cpu-limit",
            "1",
            "proxy-cpu-limit",
            "1",
        ),
        (
            "config.linkerd.io/proxy-memory-request",
            "20Mi",
            "proxy-memory-request",
            "20Mi",
        ),
        (
            "config.linkerd.io/proxy-memory-limit",
            "250Mi",
            "proxy-memory-limit",
            "250Mi",
        ),
        (
            "config.linkerd.io/proxy-ephemeral-storage-request",
            "1Mi",
            "proxy-ephemeral-storage-request",
            "1Mi",
        ),
        (
            "config.linkerd.io/proxy-ephemeral-storage-limit",
            "2Mi",
            "proxy-ephemeral-storage-limit",
            "2Mi",
        ),
        (
            "traffic.sidecar.istio.io/includeInboundPorts",
            "",
            "include-inbound-ports",
            "none",
        ),
        (
            "traffic.sidecar.istio.io/includeInboundPorts",
            "*",
            "include-inbound-ports",
            "*",
        ),
        (
            "traffic.sidecar.istio.io/excludeInboundPorts",
            "22, 23",
            "exclude-inbound-ports",
            "22-23",
        ),
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "10.0.0.1/8",
            "include-outbound-cidrs",
            "10.0.0.0/8",
        ),
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "",
            "include-outbound-cidrs",
            "none",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "1.1.1.1/32",
            "exclude-outbound-cidrs",
            "1.1.1.1",
        ),
        (
            "traffic.sidecar.istio.io/includeOutboundPorts",
            "443",
            "include-outbound-ports",
            "443",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundPorts",
            "25",
            "exclude-outbound-ports",
            "25",
        ),
        (
            "config.linkerd.io/skip-inbound-ports",
            "4567-4568",
            "exclude-inbound-ports",
            "4567,4568",
        ),
        (
            "config.linkerd.io/skip-outbound-ports",
            "25,587",
            "exclude-outbound-ports",
            "25,587",
        ),
        (
            "config.linkerd.io/skip-subnets",
            "10.0.0.0/8",
            "exclude-inbound-cidrs",
            "10.0.0.0/8",
        ),
        (
            "config.linkerd.io/opaque-ports",
            "3306",
            "opaque-ports",
            "3306",
        ),
        (
            "config.linkerd.io/default-inbound-policy",
            "all-authenticated",
            "mtls-mode",
            "STRICT",
        ),
        (
            "config.linkerd.io/default-inbound-policy",
            "audit",
            "mtls-mode",
            "PERMISSIVE",
        ),
        (
            "config.linkerd.io/proxy-require-identity-inbound-ports",
            "80,90-91",
            "port-mtls-modes",
            "80=STRICT,90=STRICT,91=STRICT",
        ),
        (
            "sidecar.istio.io/nativeSidecar",
            "false",
            "native-sidecar",
            "disabled",
        ),
        (
            "config.linkerd.io/proxy-enable-native-sidecar",
            "false",
            "native-sidecar",
            "disabled",
        ),
        (
            "config.beta.linkerd.io/proxy-enable-native-sidecar",
            "false",
            "native-sidecar",
            "disabled",
        ),
        (
            "config.alpha.linkerd.io/proxy-enable-native-sidecar",
            "true",
            "native-sidecar",
            "enabled",
        ),
        (
            "config.linkerd.io/proxy-await",
            "disabled",
            "hold-application",
            "disabled",
        ),
        (
            "config.linkerd.io/shutdown-grace-period",
            "2m",
            "drain-duration",
            "120s",
        ),
        (
            "sidecar.istio.io/rewriteAppHTTPProbers",
            "false",
            "rewrite-probes",
            "disabled",
        ),
        (
            "config.linkerd.io/image-pull-policy",
            "Always",
            "proxy-image-pull-policy",
            "Always",
        ),
        ("sidecar.istio.io/logLevel", "warning", "log-level", "warn"),
        (
            "config.linkerd.io/proxy-log-level",
            "warn,linkerd=info,hickory=error",
            "log-level",
            "warn,linkerd=info,hickory=error",
        ),
        (
            "config.linkerd.io/proxy-log-format",
            "plain",
            "log-format",
            "text",
        ),
        (
            "config.linkerd.io/access-log",
            "apache",
            "access-log",
            "enabled",
        ),
    ] {
        let own = format!("{PREFIX}{own}");
        assert_eq!(
            applied(&[(name, value)]),
            applied(&[(&own, same_as)]),
            "{name} {value}"
        );
        assert!(applied(&[(name, value)]).is_ok(), "{name} {value}");
    }
}

#[test]
fn every_other_meshes_name_refuses_what_it_cannot_mean() {
    for row in TABLE {
        for other in row.compatible {
            let errors = applied(&[(other.name, "\u{0}?")]).unwrap_err();
            assert!(errors[0].contains(other.name), "{errors:?}");
        }
    }
    let errors = applied(&[("config.linkerd.io/default-inbound-policy", "deny")]).unwrap_err();
    assert!(errors[0].contains("AuthorizationPolicy"), "{errors:?}");
}

#[test]
fn bulkheads_own_name_wins_over_any_other() {
    let settings = applied(&[
        ("sidecar.istio.io/proxyCPU", "1"),
        ("config.linkerd.io/proxy-cpu-request", "2"),
        ("bulkhead.io/proxy-cpu-request", "3"),
    ]);
    let cpu = settings.unwrap().resources.cpu.request.quantity.unwrap();
    assert_eq!(cpu.as_str(), "3");
}

#[test]
fn each_resource_is_merged_on_its_own_and_none_unsets_it() {
    let mut merged = settings();
    let namespace = [
        ("bulkhead.io/proxy-memory-limit", "512Mi"),
        ("bulkhead.io/proxy-cpu-request", "20m"),
    ];
    let pod = [
        ("bulkhead.io/proxy-cpu-request", "30m"),
        ("bulkhead.io/proxy-memory-request", "none"),
    ];
    apply(&mut merged, namespace, Level::Namespace).unwrap();
    apply(&mut merged, pod, Level::Pod).unwrap();
    let text = |amount: &crate::resources::Amount| value::show_quantity(&amount.quantity);
    assert_eq!(text(&merged.resources.cpu.request), "30m");
    assert_eq!(text(&merged.resources.cpu.limit), "none");
    assert_eq!(text(&merged.resources.memory.request), "none");
    assert_eq!(text(&merged.resources.memory.limit), "512Mi");
}

#[test]
fn a_limit_of_zero_is_no_limit() {
    for name in [
        "proxy-cpu-limit",
        "proxy-memory-limit",
        "proxy-ephemeral-storage-limit",
    ] {
        let name = format!("{PREFIX}{name}");
        assert_eq!(applied(&[(&name, "0")]), applied(&[(&name, "none")]));
    }
    let settings = applied(&[("bulkhead.io/proxy-cpu-request", "0")]).unwrap();
    assert!(settings.resources.cpu.request.quantity.unwrap().is_zero());
}

#[test]
fn a_slip_in_a_name_is_refused_with_the_name_that_was_meant() {
    let errors = applied(&[("bulkhead.io/proxy-cpu-limt", "1")]).unwrap_err();
    assert!(
        errors[0].contains("did you mean bulkhead.io/proxy-cpu-limit?"),
        "{errors:?}"
    );
    let errors = applied(&[("bulkhead.io/colour", "red")]).unwrap_err();
    assert!(errors[0].contains("bulkhead explain"), "{errors:?}");
    assert!(applied(&[(STATUS, "anything")]).is_ok());
    assert!(applied(&[("example.com/bulkhead.io", "anything")]).is_ok());
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let errors = applied(&[
        ("bulkhead.io/mtls-mode", "on"),
        ("bulkhead.io/concurrency", "0"),
        ("bulkhead.io/nonsense", ""),
    ]);
    assert_eq!(errors.unwrap_err().len(), 3);
}

#[test]
fn long_values_are_refused_and_not_repeated() {
    let long = "80,".repeat(MAX_VALUE_LENGTH);
    for row in TABLE {
        let errors = applied(&[(row.name, &long)]).unwrap_err();
        assert!(errors[0].contains("longer than"), "{errors:?}");
        assert!(errors[0].len() < 1_000);
    }
    let name = format!("{PREFIX}{}", "x".repeat(100_000));
    assert!(applied(&[(&name, "")]).unwrap_err()[0].len() < 1_000);
}

#[test]
fn an_empty_selection_is_not_everything() {
    let settings = applied(&[("bulkhead.io/include-inbound-ports", "none")]).unwrap();
    assert_eq!(
        settings.redirect.include_inbound_ports,
        Selection::Only(Default::default())
    );
    assert_eq!(settings.sidecar.mode, MtlsMode::Permissive);
}
