//! Taking our own parts out of a pod: the first half of injecting it anew, and
//! all of `uninject`.

use std::collections::BTreeMap;

use bulkhead_core::annotation;
use bulkhead_core::sidecar::APP_PROBES_VARIABLE;
use bulkhead_core::sidecar::AppProbe;
use serde_json::Map;
use serde_json::Value;

use crate::pod;
use crate::pod::CONTAINER_LISTS;
use crate::probe;
use crate::sidecar;
use crate::sidecar::INIT_CONTAINER;
use crate::status::Status;
use crate::workload_api;

/// The most Secrets that a status is believed to have added.
const MAX_PULL_SECRETS: usize = 64;

/// Our parts of a pod, with the places that they had in their lists.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) status: Status,
    pub(crate) init: Option<Value>,
    pub(crate) proxy: Option<Value>,
    /// Where the proxy was among the application's containers.
    pub(crate) proxy_place: Option<usize>,
    pub(crate) volumes: Vec<(usize, Value)>,
    pub(crate) image_pull_secrets: Vec<(usize, Value)>,
    pub(crate) workload_api: workload_api::ByContainer<workload_api::Places>,
}

/// Takes our parts out of a pod that has the shape of one, and gives its
/// containers their probes back. A pod without our proxy stays as it is.
pub(crate) fn strip(pod: &mut Value) -> Parts {
    let mut parts = Parts::default();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return parts;
    };
    let is_injected = CONTAINER_LISTS
        .iter()
        .any(|list| pod::list(spec, list).iter().any(sidecar::is_proxy));
    if !is_injected {
        return parts;
    }
    for list in CONTAINER_LISTS {
        for (place, container) in take(spec, list, sidecar::is_reserved) {
            if pod::name(&container) == Some(INIT_CONTAINER) {
                parts.init = Some(container);
            } else {
                parts.proxy = Some(container);
                parts.proxy_place = (list == "containers").then_some(place);
            }
        }
    }
    parts.volumes = take(spec, "volumes", sidecar::is_reserved);
    if let Some(proxy) = &parts.proxy {
        restore_probes(spec, &app_probes(proxy));
    }
    parts.status = take_status(pod);
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        parts.workload_api = workload_api::remove(spec, &parts.status.workload_api);
        // A forged status may have any number, and each is compared with each.
        let added = &mut parts.status.image_pull_secrets;
        added.truncate(MAX_PULL_SECRETS);
        parts.image_pull_secrets = take(spec, "imagePullSecrets", |name| {
            added.iter().any(|secret| secret == name)
        });
    }
    remove_texts(pod, "labels", &parts.status.labels);
    remove_texts(pod, "annotations", &parts.status.annotations);
    parts.status.undo_parents(pod);
    parts
}

/// Takes the items of these names out of a list, with the places they had.
fn take(
    spec: &mut Map<String, Value>,
    list: &str,
    is_ours: impl Fn(&str) -> bool,
) -> Vec<(usize, Value)> {
    let mut taken = Vec::new();
    let Some(Value::Array(items)) = spec.get_mut(list) else {
        return taken;
    };
    if items
        .iter()
        .any(|item| pod::name(item).is_some_and(&is_ours))
    {
        let mut kept = Vec::with_capacity(items.len());
        for (place, item) in std::mem::take(items).into_iter().enumerate() {
            if pod::name(&item).is_some_and(&is_ours) {
                taken.push((place, item));
            } else {
                kept.push(item);
            }
        }
        *items = kept;
    }
    taken
}

/// The application's probes, as the proxy was told them.
fn app_probes(proxy: &Value) -> BTreeMap<String, AppProbe> {
    proxy
        .as_object()
        .map(|proxy| pod::list(proxy, "env"))
        .unwrap_or_default()
        .iter()
        .find(|variable| pod::name(variable) == Some(APP_PROBES_VARIABLE))
        .and_then(|variable| variable.get("value")?.as_str())
        .and_then(|value| serde_json::from_str(&sidecar::unescape(value)).ok())
        .unwrap_or_default()
}

fn restore_probes(spec: &mut Map<String, Value>, probes: &BTreeMap<String, AppProbe>) {
    if probes.is_empty() {
        return;
    }
    for list in CONTAINER_LISTS {
        let Some(Value::Array(containers)) = spec.get_mut(list) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            probe::restore(container, probes);
        }
    }
}

fn take_status(pod: &mut Value) -> Status {
    pod.get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
        .and_then(|annotations| pod::remove(annotations, annotation::STATUS))
        .and_then(|status| serde_json::from_str(status.as_str()?).ok())
        .unwrap_or_default()
}

/// Removes what injection wrote, unless somebody has changed it since.
fn remove_texts(pod: &mut Value, field: &str, written: &BTreeMap<String, String>) {
    let Some(texts) = pod
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut(field)?.as_object_mut())
    else {
        return;
    };
    for name in crate::patch::WRITTEN_NAMES {
        let is_ours = written
            .get(name)
            .is_some_and(|value| texts.get(name).and_then(Value::as_str) == Some(value));
        if is_ours {
            pod::remove(texts, name);
        }
    }
}
