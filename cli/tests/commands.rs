//! The built command, run as a person runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// Runs the command with this standard input.
fn bulkhead(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn example(name: &str) -> String {
    std::fs::read_to_string(format!("{EXAMPLES}/{name}")).unwrap()
}

/// What a successful run writes to standard output, and to standard error.
fn succeeded(output: Output) -> (String, String) {
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{report}");
    (String::from_utf8(output.stdout).unwrap(), report)
}

/// What a failed run writes to standard error; it writes nothing else.
fn failed(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    String::from_utf8(output.stderr).unwrap()
}

/// The documents of a stream as kubectl reads them.
fn documents(stream: &str) -> Vec<serde_json::Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(stream, options).unwrap()
}

#[test]
fn the_shop_is_injected_and_every_object_is_reported() {
    let path = format!("{EXAMPLES}/shop.yaml");
    let (injected, report) = succeeded(bulkhead(&["inject", "-f", &path], ""));
    for line in [
        "namespace/shop: left as it is (makes no pods)",
        "deployment/cart: injected (enabled_by_namespace_label)",
        "statefulset/orders: injected (enabled_by_pod_label)",
        "job/report: injected (enabled_by_namespace_label)",
        "pod/debug: skipped (disabled_by_pod_label)",
    ] {
        assert!(report.contains(line), "{report}");
    }
    let before = documents(&example("shop.yaml"));
    let after = documents(&injected);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        let name = format!("{}/{}", after["kind"], after["metadata"]["name"]);
        let containers = after.pointer("/spec/template/spec/initContainers");
        let is_injected = containers.is_some_and(|list| list[1]["name"] == "bulkhead-proxy");
        assert_eq!(is_injected, before != after, "{name}");
    }
    // The objects that were not touched are there byte for byte.
    let untouched = example("shop.yaml");
    let service = untouched
        .split("---\n")
        .find(|text| text.contains("kind: Service\n"))
        .unwrap();
    assert!(injected.contains(service));
}

#[test]
fn injecting_again_changes_nothing_and_uninjecting_gives_back_what_was() {
    let (once, _) = succeeded(bulkhead(&["inject", "-f", "-"], &example("shop.yaml")));
    let (twice, report) = succeeded(bulkhead(&["inject", "-f", "-"], &once));
    assert_eq!(once, twice);
    assert!(
        report.contains("deployment/cart: already injected"),
        "{report}"
    );
    let (back, report) = succeeded(bulkhead(&["uninject", "-f", "-"], &once));
    assert!(
        report.contains("deployment/cart: sidecar taken out"),
        "{report}"
    );
    assert!(
        report.contains("pod/debug: left as it is (has no sidecar)"),
        "{report}"
    );
    assert_eq!(documents(&back), documents(&example("shop.yaml")));
}

#[test]
fn where_anything_is_refused_nothing_is_written_and_the_reason_is_given() {
    let stream = format!(
        "{}---\n{}",
        example("shop.yaml"),
        example("bad-annotation.yaml")
    );
    let report = failed(bulkhead(&["inject", "-f", "-"], &stream));
    for part in [
        "pod/typo: refused (invalid_annotation)",
        "document 8",
        "bulkhead.io/proxy-memory-limit",
        "\"128MB\"",
        "64Mi",
        "nothing was written",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

#[test]
fn every_kind_that_makes_pods_is_found() {
    let pod = r#"{"spec": {"containers": [{"name": "app", "image": "x"}]}}"#;
    let template = format!(r#"{{"template": {pod}}}"#);
    let mut objects = vec![
        format!(
            r#"{{"kind": "Pod", "metadata": {{"name": "pod"}}, {}"#,
            &pod[1..]
        ),
        format!(
            r#"{{"kind": "PodTemplate", "metadata": {{"name": "x"}}, {}"#,
            &template[1..]
        ),
        format!(
            r#"{{"kind": "CronJob", "metadata": {{"name": "x"}}, "spec": {{"jobTemplate": {{"spec": {template}}}}}}}"#
        ),
    ];
    for kind in [
        "DaemonSet",
        "Deployment",
        "DeploymentConfig",
        "Job",
        "ReplicaSet",
        "ReplicationController",
        "StatefulSet",
    ] {
        objects.push(format!(
            r#"{{"kind": "{kind}", "metadata": {{"name": "x"}}, "spec": {template}}}"#
        ));
    }
    let list = format!(r#"{{"kind": "List", "items": [{}]}}"#, objects.join(","));
    let count = |report: &str| report.matches(": injected (enabled_by_default)").count();
    let (injected, report) = succeeded(bulkhead(&["inject", "-f", "-"], &list));
    assert_eq!(count(&report), objects.len(), "{report}");
    assert_eq!(
        injected.matches("\"name\":\"bulkhead-proxy\"").count(),
        objects.len()
    );
    let stream = objects.join("\n---\n");
    let (_, report) = succeeded(bulkhead(&["inject", "-f", "-"], &stream));
    assert_eq!(count(&report), objects.len(), "{report}");
}

#[test]
fn a_namespace_in_the_stream_decides_for_its_pods() {
    let namespace =
        "kind: Namespace\nmetadata:\n  name: shop\n  labels: {bulkhead.io/inject: disabled}\n";
    let pod =
        "kind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {containers: [{name: app}]}\n";
    // Its place in the stream does not matter.
    for stream in [
        format!("{namespace}---\n{pod}"),
        format!("{pod}---\n{namespace}"),
    ] {
        let (out, report) = succeeded(bulkhead(&["inject", "-f", "-"], &stream));
        assert_eq!(out, stream);
        assert!(
            report.contains("pod/a: skipped (disabled_by_namespace_label)"),
            "{report}"
        );
    }
}

#[test]
fn settings_of_the_installation_can_be_given() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}]}\n";
    let arguments = [
        "inject",
        "-f",
        "-",
        "--image",
        "registry.example/bulkhead:9",
        "--trust-domain",
        "example.org",
        "--ca-address",
        "ca.example:443",
        "--image-pull-secret",
        "registry",
        "--set",
        "mtls-mode=STRICT",
        "--set",
        "proxyCPULimit=2",
    ];
    let (injected, _) = succeeded(bulkhead(&arguments, pod));
    let pod = &documents(&injected)[0];
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["image"], "registry.example/bulkhead:9");
    assert_eq!(proxy["resources"]["limits"]["cpu"], "2");
    assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "registry");
    let env = proxy["env"].to_string();
    for part in ["example.org", "ca.example:443", "STRICT"] {
        assert!(env.contains(part), "{env}");
    }
    let report = failed(bulkhead(
        &["inject", "-f", "-", "--set", "mtls-mode=on"],
        "",
    ));
    assert!(report.contains("STRICT, PERMISSIVE or DISABLE"), "{report}");
}

#[test]
fn bad_yaml_is_an_error_with_its_place() {
    let report = failed(bulkhead(
        &["inject", "-f", "-"],
        "kind: A\n---\nkind: B\nx: [1,\n",
    ));
    assert!(
        report.contains("document 2") && report.contains("line 4"),
        "{report}"
    );
    let report = failed(bulkhead(&["uninject", "-f", "-"], "a: 1\na: 2\n"));
    assert!(
        report.contains("key a is there twice") && report.contains("line 2"),
        "{report}"
    );
    let report = failed(bulkhead(&["inject", "-f", "/no/such/file"], ""));
    assert!(report.contains("/no/such/file"), "{report}");
}

#[test]
fn half_an_object_is_left_as_it_is_and_that_is_said() {
    let patch = "kind: Deployment\nmetadata: {name: a}\nspec: {replicas: 3}\n";
    let (out, report) = succeeded(bulkhead(&["inject", "-f", "-"], patch));
    assert_eq!(out, patch);
    assert!(report.contains("deployment/a: left as it is (has no pod template)"));
}

#[test]
fn a_template_that_was_not_rendered_is_recognised() {
    let chart = "kind: Pod\nmetadata:\n  name: {{ .Release.Name }}\n";
    let report = failed(bulkhead(&["inject", "-f", "-"], chart));
    assert!(report.contains("helm template"), "{report}");
}

#[test]
fn a_boolean_where_a_label_belongs_is_explained() {
    let pod = "kind: Pod\nmetadata: {name: a, labels: {bulkhead.io/inject: true}}\nspec: {containers: [{name: app}]}\n";
    let report = failed(bulkhead(&["inject", "-f", "-"], pod));
    assert!(report.contains("put its value in quotes"), "{report}");
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    // More than a pipe holds, so that writing meets the closed end.
    let stream = "kind: ConfigMap\ndata: {x: y}\n---\n".repeat(10_000);
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(["uninject", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stream.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn explain_lists_all_annotations_and_tells_of_one() {
    let (all, _) = succeeded(bulkhead(&["explain"], ""));
    for row in bulkhead_core::annotation::TABLE {
        assert!(all.contains(row.name));
        for name in [row.name, row.example] {
            let one = succeeded(bulkhead(&["explain", row.name], "")).0;
            assert!(one.contains(name), "{one}");
        }
    }
    for name in [
        "proxy-cpu-limit",
        "sidecar.istio.io/proxyCPULimit",
        "proxyCPULimit",
    ] {
        let (one, _) = succeeded(bulkhead(&["explain", name], ""));
        assert!(one.starts_with("bulkhead.io/proxy-cpu-limit\n"), "{one}");
    }
    let report = failed(bulkhead(&["explain", "proxy-cpu-limt"], ""));
    assert!(
        report.contains("did you mean bulkhead.io/proxy-cpu-limit?"),
        "{report}"
    );
}

#[test]
fn the_docs_page_is_what_explain_prints() {
    let (page, _) = succeeded(bulkhead(&["explain", "--markdown"], ""));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/annotations.md");
    assert_eq!(page, std::fs::read_to_string(path).unwrap());
}
