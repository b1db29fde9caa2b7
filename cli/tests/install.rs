//! `bulkhead install`, as a person runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

fn install(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .arg("install")
        .args(arguments)
        .output()
        .unwrap()
}

/// The objects that it prints.
fn objects(arguments: &[&str]) -> Vec<Value> {
    let output = install(arguments);
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{report}");
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let text = String::from_utf8(output.stdout).unwrap();
    serde_saphyr::from_multiple_with_options(&text, options).unwrap()
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect()
}

/// The images of every container, and the one for sidecars.
fn images(objects: &[Value]) -> BTreeSet<String> {
    let containers = objects
        .iter()
        .filter_map(|object| object.pointer("/spec/template/spec/containers")?.as_array())
        .flatten();
    containers
        .flat_map(|container| {
            let variables = container["env"].as_array().unwrap();
            let proxy = variables
                .iter()
                .filter(|variable| variable["name"] == "BULKHEAD_WEBHOOK_PROXY_IMAGE")
                .map(|variable| &variable["value"]);
            let images: Vec<_> = proxy.chain([&container["image"]]).collect();
            images
        })
        .map(|image| image.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_it_prints_starts_with_the_namespace_and_has_all_three_programs() {
    let objects = objects(&[]);
    assert_eq!(objects[0]["kind"], "Namespace");
    let labels = &objects[0]["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    let deployments: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "Deployment")
        .map(|object| object["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        deployments,
        ["bulkhead-ca", "bulkhead-control", "bulkhead-webhook"]
    );
}

#[test]
fn images_come_from_where_the_options_say() {
    let version = env!("CARGO_PKG_VERSION");
    let named = |registry: &str, tag: &str| -> BTreeSet<String> {
        ["ca", "control", "proxy", "webhook"]
            .iter()
            .map(|name| format!("{registry}/{name}:{tag}"))
            .collect()
    };
    assert_eq!(images(&objects(&[])), named("ghcr.io/bulkhead", version));
    let registry = "registry.example:5000/mesh";
    assert_eq!(
        images(&objects(&["--registry", registry, "--tag", "next"])),
        named(registry, "next")
    );
    assert_eq!(
        images(&objects(&["--registry", registry])),
        named(registry, version)
    );
}

#[test]
fn other_images_are_all_that_changes() {
    let blanked = |mut objects: Vec<Value>| {
        for object in &mut objects {
            let containers = object.pointer_mut("/spec/template/spec/containers");
            for container in containers
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                container["image"] = Value::Null;
                for variable in container["env"].as_array_mut().unwrap() {
                    if variable["name"] == "BULKHEAD_WEBHOOK_PROXY_IMAGE" {
                        variable["value"] = Value::Null;
                    }
                }
            }
        }
        objects
    };
    assert_eq!(
        blanked(objects(&["--tag", "next"])),
        blanked(objects(&[])),
        "values such as \"false\" must stay strings"
    );
}

#[test]
fn an_older_api_server_gets_no_kind_that_it_does_not_know() {
    let newest = objects(&[]);
    let newer = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
    for kind in newer {
        assert!(kinds(&newest).contains(kind), "{kind}");
    }
    for version in ["1.34", "v1.35.2-gke.1", "1.34+"] {
        let older = objects(&["--kubernetes-version", version]);
        let mut left_out = kinds(&newest);
        left_out.retain(|kind| !kinds(&older).contains(kind));
        assert_eq!(left_out, newer.into(), "{version}");
    }
}

#[test]
fn a_version_that_is_too_old_or_none_is_refused_in_words() {
    for (version, words) in [("1.29", "takes 1.30 or newer"), ("new", "write 1.34")] {
        let output = install(&["--kubernetes-version", version]);
        assert!(!output.status.success());
        let report = String::from_utf8(output.stderr).unwrap();
        assert!(report.contains(words), "{report}");
    }
}

#[test]
fn istios_kinds_can_be_left_to_istio() {
    let istios = |objects: &[Value]| {
        objects
            .iter()
            .filter(|object| object["spec"]["group"] == "security.istio.io")
            .count()
    };
    assert_eq!(istios(&objects(&[])), 1);
    assert_eq!(istios(&objects(&["--skip-istio-crds"])), 0);
}
