//! The pod as it should be, and the patch that makes it so.
//!
//! ```text
//!  pod ──strip──▶ pod without us ──rewrite probes, add parts──▶ pod as it should be
//!   └──────────────────────────────difference──────────────────────────┘
//! ```
//!
//! The patch is the difference of the two documents, so that the two can never
//! disagree, and a pod that is as it should be gets an empty one.

use std::collections::BTreeMap;

use bulkhead_core::annotation;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::ports;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::resources::Level;
use bulkhead_core::sidecar::AppProbe;
use bulkhead_core::sidecar::RedirectedListener;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::Refusal;
use crate::overlay;
use crate::pod;
use crate::pod::CONTAINER_LISTS;
use crate::pod::Pod;
use crate::probe;
use crate::reason::RefuseReason;
use crate::sidecar;
use crate::sidecar::INIT_CONTAINER;
use crate::sidecar::PROXY_CONTAINER;
use crate::status::Parent;
use crate::status::Status;
use crate::strip;
use crate::strip::Parts;
use crate::workload;
use crate::workload_api;

/// Tells Istio's sidecars that this pod understands their mTLS.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
/// Tells kubectl which container `logs` and `exec` mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The names of labels and annotations that injection writes beside the status.
pub(crate) const WRITTEN_NAMES: [&str; 2] = [TLS_MODE_LABEL, DEFAULT_CONTAINER];

/// The grace period of a pod that has none of its own.
const DEFAULT_GRACE_SECONDS: u32 = 30;

/// The pod with its sidecar.
pub(crate) fn injected(
    pod: &Value,
    mut settings: PodSettings,
    image_pull_secrets: &[String],
) -> Result<Value, Refusal> {
    let mut pod = pod.clone();
    let parts = strip::strip(&mut pod);
    check_names(&pod)?;
    describe(&pod, &mut settings)?;
    settings.sidecar.probes = rewrite_probes(&mut pod, &settings)?;
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        image: settings.image.clone(),
        ..Status::default()
    };
    write_metadata(&mut pod, &mut status);
    if settings.sidecar.workload_api_path.is_some()
        && let Some(spec) = pod["spec"].as_object_mut()
    {
        status.workload_api = workload_api::add(spec, &parts.workload_api)?;
    }
    add_containers(&mut pod, &settings, &parts, &mut status)?;
    add_volumes(&mut pod, &settings, &parts, &mut status);
    add_pull_secrets(&mut pod, image_pull_secrets, &parts, &mut status);
    status.inherit_parents(&parts.status);
    let annotations = status.ensure(Parent::Annotations, &mut pod);
    annotations[annotation::STATUS] = Value::String(to_text(&status));
    Ok(pod)
}

/// Refuses a pod that has one of our names once our parts are out of it: it is
/// the user's, and would be lost or clash.
fn check_names(pod: &Value) -> Result<(), Refusal> {
    let Some(spec) = pod["spec"].as_object() else {
        return Ok(());
    };
    for (list, kind) in [
        ("initContainers", "container"),
        ("containers", "container"),
        ("volumes", "volume"),
    ] {
        let taken = pod::list(spec, list)
            .iter()
            .filter_map(pod::name)
            .find(|name| sidecar::is_reserved(name));
        if let Some(name) = taken {
            return Err(Refusal {
                reason: RefuseReason::ReservedName,
                message: format!(
                    "the pod has a {kind} of the name {name:?}, which belongs to the sidecar; \
                     rename it, or, where it is left over from an earlier injection, remove it"
                ),
            });
        }
    }
    Ok(())
}

/// Puts into the settings what the pod itself says of its workload.
fn describe(pod: &Value, settings: &mut PodSettings) -> Result<(), Refusal> {
    let view = Pod::new(pod)?;
    if let Some(name) = workload::name(view) {
        settings.sidecar.workload = name;
    }
    settings.sidecar.redirected_outbound = RedirectedListener::in_pod();
    for container in view.containers() {
        for port in pod::list(container, "ports") {
            let is_tcp = port
                .get("protocol")
                .is_none_or(|protocol| protocol == "TCP");
            let Some(number) = port.get("containerPort").and_then(pod::port_number) else {
                continue;
            };
            if is_tcp {
                check_port(container, number)?;
                note_protocol(port, number, settings);
            }
        }
    }
    Ok(())
}

fn check_port(container: &Map<String, Value>, number: u16) -> Result<(), Refusal> {
    if !ports::RESERVED_IN_POD.contains(&number) {
        return Ok(());
    }
    let name = container.get("name").and_then(Value::as_str);
    Err(Refusal {
        reason: RefuseReason::ReservedPort,
        message: format!(
            "container {:?} listens on port {number}, which belongs to the sidecar (as do {}); let \
             it listen on another port",
            name.unwrap_or_default(),
            list_words(ports::RESERVED_IN_POD),
        ),
    })
}

fn list_words(numbers: &[u16]) -> String {
    let words: Vec<_> = numbers.iter().map(u16::to_string).collect();
    words.join(", ")
}

/// What the port's name says that it speaks. What a person wrote in the
/// annotation about opaque ports wins; the first container that has the port
/// speaks for it.
fn note_protocol(port: &Value, number: u16, settings: &mut PodSettings) {
    let Some(protocol) = pod::name(port).and_then(Protocol::from_port_name) else {
        return;
    };
    let sidecar = &mut settings.sidecar;
    let is_opaque = sidecar.opaque_ports.contains(number);
    let is_known = match protocol {
        Protocol::Auto => !is_opaque,
        Protocol::Opaque => is_opaque,
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => false,
    };
    let is_overruled = is_opaque && settings.opaque_ports_level > Level::Installation;
    if !is_known && !is_overruled {
        sidecar.port_protocols.entry(number).or_insert(protocol);
    }
}

fn rewrite_probes(
    pod: &mut Value,
    settings: &PodSettings,
) -> Result<BTreeMap<String, AppProbe>, Refusal> {
    let mut probes = BTreeMap::new();
    if !settings.rewrite_probes {
        return Ok(probes);
    }
    let grace = pod["spec"]
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_u64)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    for list in CONTAINER_LISTS {
        let Some(Value::Array(containers)) = pod["spec"].get_mut(list) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            probe::rewrite(container, &settings.redirect, grace, &mut probes)?;
        }
    }
    Ok(probes)
}

/// Writes the label and the annotation that others look for, where the pod has
/// none of its own.
fn write_metadata(pod: &mut Value, status: &mut Status) {
    let first = pod["spec"]["containers"].get(0).and_then(pod::name);
    let first = first.unwrap_or_default().to_owned();
    let labels = status.ensure(Parent::Labels, pod);
    if labels.get(TLS_MODE_LABEL).is_none() {
        labels[TLS_MODE_LABEL] = Value::from("istio");
        status
            .labels
            .insert(TLS_MODE_LABEL.to_owned(), "istio".to_owned());
    }
    let annotations = status.ensure(Parent::Annotations, pod);
    if annotations.get(DEFAULT_CONTAINER).is_none() {
        annotations[DEFAULT_CONTAINER] = Value::from(first.as_str());
        status
            .annotations
            .insert(DEFAULT_CONTAINER.to_owned(), first);
    }
}

/// A native sidecar and the container that redirects traffic to it come before
/// every other init container, which therefore have network and mTLS. A classic
/// proxy runs only after all init containers have ended, so that redirection
/// comes last among them, or they would have no network.
fn add_containers(
    pod: &mut Value,
    settings: &PodSettings,
    parts: &Parts,
    status: &mut Status,
) -> Result<(), Refusal> {
    let renewed = |present: &Option<Value>, wanted: Value| match present {
        Some(present) => overlay::renewed_container(present, wanted, &parts.status),
        None => wanted,
    };
    let proxy = to_value(&sidecar::proxy(settings)?);
    status.resources = proxy.get("resources").cloned().unwrap_or_default();
    let proxy = renewed(&parts.proxy, proxy);
    let init = renewed(&parts.init, to_value(&sidecar::init(settings)));
    status.init_containers.push(INIT_CONTAINER.to_owned());
    let init_containers = items(status.ensure(Parent::InitContainers, pod));
    if settings.native_sidecar {
        init_containers.splice(0..0, [init, proxy]);
        status.init_containers.push(PROXY_CONTAINER.to_owned());
        return Ok(());
    }
    init_containers.push(init);
    status.containers.push(PROXY_CONTAINER.to_owned());
    let containers = items(&mut pod["spec"]["containers"]);
    let place = match parts.proxy_place {
        _ if settings.hold_application => 0,
        Some(place) => place.min(containers.len()),
        None => containers.len(),
    };
    containers.insert(place, proxy);
    Ok(())
}

fn add_volumes(pod: &mut Value, settings: &PodSettings, parts: &Parts, status: &mut Status) {
    let volumes = items(status.ensure(Parent::Volumes, pod));
    for wanted in sidecar::volumes(settings) {
        status.volumes.push(wanted.name.clone());
        let present = parts
            .volumes
            .iter()
            .find(|(_, present)| pod::name(present) == Some(&wanted.name));
        let wanted = to_value(&wanted);
        match present {
            Some((place, present)) => {
                let renewed = overlay::renewed_volume(present, &wanted);
                volumes.insert((*place).min(volumes.len()), renewed);
            }
            None => volumes.push(wanted),
        }
    }
}

fn add_pull_secrets(pod: &mut Value, names: &[String], parts: &Parts, status: &mut Status) {
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !has_pull_secret(pod, name))
        .collect();
    if missing.is_empty() {
        return;
    }
    let secrets = items(status.ensure(Parent::ImagePullSecrets, pod));
    for name in missing {
        let present = parts
            .image_pull_secrets
            .iter()
            .find(|(_, present)| pod::name(present) == Some(name));
        let place = present.map_or(secrets.len(), |(place, _)| (*place).min(secrets.len()));
        secrets.insert(place, json!({"name": name}));
        status.image_pull_secrets.push(name.clone());
    }
}

fn has_pull_secret(pod: &Value, name: &str) -> bool {
    pod["spec"]
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_some_and(|secrets| secrets.iter().any(|secret| pod::name(secret) == Some(name)))
}

fn items(list: &mut Value) -> &mut Vec<Value> {
    list.as_array_mut()
        .expect("the pod's shape was checked, and what is made here is a list")
}

fn to_value(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).expect("typed Kubernetes objects have string keys only")
}

fn to_text(status: &Status) -> String {
    serde_json::to_string(status).expect("plain data with string keys is always JSON")
}
