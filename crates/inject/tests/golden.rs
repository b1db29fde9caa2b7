//! Pods of `testdata/` and what becomes of them. `x.pod.yaml` goes in and
//! `x.injected.yaml` must come out; the pairs are found by listing the folder.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use bulkhead_inject::uninject;

#[path = "../examples/regenerate.rs"]
#[expect(dead_code, reason = "what writes the files is not needed to read them")]
mod regenerate;

use regenerate::CHART_FILES;
use regenerate::TESTDATA;
use regenerate::expressions;
use regenerate::injected;
use regenerate::read;

/// The names of the files that end so, without their end.
fn names(end: &str) -> BTreeSet<String> {
    std::fs::read_dir(TESTDATA)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some(name.strip_suffix(end)?.to_owned())
        })
        .collect()
}

#[test]
fn every_pod_becomes_what_its_file_says() {
    assert_eq!(
        names(".pod.yaml"),
        names(".injected.yaml"),
        "a file has no partner; run: cargo run -p bulkhead-inject --example regenerate"
    );
    for name in names(".pod.yaml") {
        let expected = std::fs::read_to_string(format!("{TESTDATA}/{name}.injected.yaml")).unwrap();
        assert!(
            injected(&name).unwrap() == expected,
            "{name}.injected.yaml is out of date; where the change is meant, run: \
             cargo run -p bulkhead-inject --example regenerate"
        );
    }
}

#[test]
fn every_pod_comes_back_as_it_was() {
    for name in names(".pod.yaml") {
        let pod = read(&format!("{name}.pod.yaml")).unwrap();
        let injected = read(&format!("{name}.injected.yaml")).unwrap();
        assert_eq!(uninject(injected), pod, "{name}");
    }
}

#[test]
fn the_charts_policies_ask_what_injection_asks() {
    for (file, expression) in expressions() {
        let shipped = std::fs::read_to_string(format!("{CHART_FILES}/{file}")).unwrap();
        assert!(
            shipped == expression,
            "{file} is out of date; run: cargo run -p bulkhead-inject --example regenerate"
        );
    }
}
