//! Writes `testdata/x.injected.yaml` anew for each `testdata/x.pod.yaml`, and the
//! expressions of the chart's policies:
//! `cargo run -p bulkhead-inject --example regenerate`, then read the diff.

use std::error::Error;

use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_inject::Decision;
use bulkhead_inject::Defaults;
use bulkhead_inject::Namespace;
use bulkhead_inject::expression;
use bulkhead_inject::inject_in_place;
use serde_json::Value;

pub(crate) const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");

fn main() -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(TESTDATA)? {
        let file = entry?.file_name();
        let name = file
            .to_str()
            .and_then(|file| file.strip_suffix(".pod.yaml"));
        if let Some(name) = name {
            std::fs::write(format!("{TESTDATA}/{name}.injected.yaml"), injected(name)?)?;
        }
    }
    for (file, expression) in expressions() {
        std::fs::write(format!("{CHART_FILES}/{file}"), expression)?;
    }
    Ok(())
}

/// Where the chart keeps what its templates are made of.
pub(crate) const CHART_FILES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/bulkhead/files");

/// What the chart's policies ask of a pod. The installation's default is Helm's
/// to fill in.
pub(crate) fn expressions() -> [(&'static str, String); 2] {
    let served = expression::can_be_served().map(|(_, expression)| format!("({expression})"));
    let meshless = format!("!({})", expression::carries_another_mesh());
    [
        (
            "asks-for-a-sidecar.cel",
            expression::asks_for_a_sidecar("{{ .Values.injection.default }}") + "\n",
        ),
        (
            "can-be-served.cel",
            [served.join(" && "), meshless].join(" && ") + "\n",
        ),
    ]
}

/// What becomes of a pod in the namespace `shop` of an installation that was
/// told only its image and a Secret to fetch it with.
pub(crate) fn injected(name: &str) -> Result<String, Box<dyn Error>> {
    let mut pod = read(&format!("{name}.pod.yaml"))?;
    let settings = PodSettings::new(default_trust_domain(), "bulkhead:test".to_owned());
    let defaults = Defaults {
        image_pull_secrets: vec!["registry".to_owned()],
        ..Defaults::new(settings)
    };
    let namespace = Namespace {
        name: "shop".to_owned(),
        ..Namespace::default()
    };
    match inject_in_place(&mut pod, &namespace, &defaults) {
        Decision::Inject(_) => Ok(serde_saphyr::to_string(&pod)?),
        other => Err(format!("{name} is not injected: {other:?}").into()),
    }
}

/// A document of the folder.
pub(crate) fn read(file: &str) -> Result<Value, Box<dyn Error>> {
    let text = std::fs::read_to_string(format!("{TESTDATA}/{file}"))?;
    Ok(serde_saphyr::from_str(&text)?)
}
