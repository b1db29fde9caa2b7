//! What the webhook makes of pods.

use anyhow::Context as _;
use bulkhead_core::ports;
use bulkhead_inject::{InjectReason, PROXY_CONTAINER, RefuseReason, SkipReason};
use serde_json::{Value, json};

use crate::commands::demo::reviewer::{BAD_ANNOTATION, SHOP, wanted};
use crate::commands::demo::stage::Stage;
use crate::commands::demo::story::{Proof, expect};

pub(super) async fn inject(stage: &mut Stage) -> anyhow::Result<Proof> {
    let reviewer = stage.reviewer().await?;
    let mut cart = wanted(SHOP, "deployment/cart")?;
    let before = cart.pod.clone();
    let review = reviewer.review(&cart).await?;
    expect(review.allowed, "the pod to be admitted", &review.message)?;
    let reason = InjectReason::NamespaceLabel.as_str();
    expect(review.reason == reason, reason, &review.reason)?;

    let proxy = proxy(&review.pod)?;
    let is_native = proxy["restartPolicy"] == "Always";
    expect(is_native, "a native sidecar", &proxy["restartPolicy"])?;
    let container = &review.pod["spec"]["containers"][0];
    let mut probes = Vec::new();
    for name in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let asked = &container[name]["httpGet"];
        let is_led = asked["port"] == ports::PROXY_STATUS;
        expect(is_led, "each probe to ask the sidecar", &container[name])?;
        let path = asked["path"].as_str().unwrap_or_default();
        probes.push((name, target(&before["spec"]["containers"][0][name]), path));
    }

    cart.pod = review.pod.clone();
    let again = reviewer.review(&cart).await?;
    let changes = format!("{} changes", again.operations);
    expect(
        again.operations == 0,
        "no change to a pod that has its sidecar",
        changes,
    )?;

    let mut proof = Proof::new(format!(
        "sidecar added in {} changes; all {} probes ask the proxy",
        review.operations,
        probes.len()
    ))
    .with(format!(
        "POST {}, an AdmissionReview of {} bytes; its CA bundle verifies its TLS",
        reviewer.url(),
        review.asked_bytes
    ))
    .with(format!(
        "the pod had {}; now it has {}",
        containers(&before),
        containers(&review.pod)
    ));
    for (name, before, path) in probes {
        let port = ports::PROXY_STATUS;
        proof = proof.with(format!("{name}: {before} becomes GET :{port}{path}"));
    }
    Ok(proof
        .with(format!(
            "the reason, for logs, metrics and the audit: {reason}"
        ))
        .with("asked about the injected pod again, the webhook changes nothing"))
}

pub(super) async fn skip(stage: &mut Stage) -> anyhow::Result<Proof> {
    let debug = wanted(SHOP, "pod/debug")?;
    let review = stage.reviewer().await?.review(&debug).await?;
    expect(review.allowed, "the pod to be admitted", &review.message)?;
    let reason = SkipReason::PodLabel;
    expect(
        review.reason == reason.as_str(),
        reason.as_str(),
        &review.reason,
    )?;
    let changes = format!("{} changes", review.operations);
    expect(review.pod == debug.pod, "an unchanged pod", changes)?;
    Ok(Proof::new(format!("left as it came: {}", review.reason))
        .with("its namespace asks for sidecars; its own label says bulkhead.io/inject: disabled")
        .with(format!(
            "the reason, for logs, metrics and the audit: {}",
            reason.explanation()
        )))
}

pub(super) async fn sidecar_resources(stage: &mut Stage) -> anyhow::Result<Proof> {
    let orders = wanted(SHOP, "statefulset/orders")?;
    let review = stage.reviewer().await?.review(&orders).await?;
    expect(review.allowed, "the pod to be admitted", &review.message)?;
    let resources = &proxy(&review.pod)?["resources"];
    let expected = json!({
        "requests": {"cpu": "50m", "memory": "32Mi"},
        "limits": {"memory": "512Mi"},
    });
    expect(*resources == expected, &expected.to_string(), resources)?;
    Ok(
        Proof::new("two values are the pod's, the third stays the default")
            .with("sidecar.istio.io/proxyCPU: 50m becomes requests.cpu 50m")
            .with("sidecar.istio.io/proxyMemoryLimit: 512Mi becomes limits.memory 512Mi")
            .with("nobody said anything about requests.memory: it stays the installation's 32Mi"),
    )
}

pub(super) async fn bad_annotation_refused(stage: &mut Stage) -> anyhow::Result<Proof> {
    let typo = wanted(BAD_ANNOTATION, "pod/typo")?;
    let review = stage.reviewer().await?.review(&typo).await?;
    expect(!review.allowed, "the pod to be refused", "it was admitted")?;
    let reason = RefuseReason::InvalidAnnotation.as_str();
    expect(review.reason == reason, reason, &review.reason)?;
    for part in ["bulkhead.io/proxy-memory-limit", "128MB"] {
        let names = review.message.contains(part);
        expect(
            names,
            &format!("a message that names {part}"),
            &review.message,
        )?;
    }
    Ok(
        Proof::new("refused, naming annotation, value and what is allowed")
            .with("the pod says bulkhead.io/proxy-memory-limit: 128MB")
            .with(format!("kubectl would show: {}", review.message)),
    )
}

/// The proxy's container, among the init containers as a native sidecar is.
fn proxy(pod: &Value) -> anyhow::Result<&Value> {
    let containers = pod["spec"]["initContainers"].as_array();
    containers
        .into_iter()
        .flatten()
        .find(|container| container["name"] == PROXY_CONTAINER)
        .context("expected a sidecar among the init containers; saw none")
}

/// The names of a pod's containers, in the order in which they start.
fn containers(pod: &Value) -> String {
    let names: Vec<_> = ["initContainers", "containers"]
        .iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    names.join(", ")
}

/// What a probe asks, in short.
fn target(probe: &Value) -> String {
    let shown = |port: &Value| port.to_string().replace('"', "");
    if let Some(get) = probe.get("httpGet") {
        let path = get["path"].as_str().unwrap_or_default();
        return format!("GET :{}{path}", shown(&get["port"]));
    }
    match (probe.get("grpc"), probe.get("tcpSocket")) {
        (Some(grpc), _) => format!("gRPC :{}", shown(&grpc["port"])),
        (None, Some(tcp)) => format!("TCP :{}", shown(&tcp["port"])),
        (None, None) => "no network probe".to_owned(),
    }
}
