//! Probes and lifecycle hooks, rewritten so that the kubelet asks the proxy and
//! the proxy asks the application over loopback; and the way back.
//!
//! The kubelet has no certificate, so that a STRICT port would refuse it. What
//! never meets the proxy stays as it is: `exec` probes, probes of another host,
//! and probes of ports that are not redirected. A probe of a port name that the
//! container does not have stays too: it fails as it did before, with the
//! kubelet's own Event about it. So does a `tcpSocket` lifecycle hook, which no
//! kubelet has ever run.

use std::collections::BTreeMap;

use bulkhead_core::ports;
use bulkhead_core::redirect::RedirectConfig;
use bulkhead_core::sidecar::AppProbe;
use bulkhead_core::sidecar::ProbeHandler;
use bulkhead_core::sidecar::ProbeHeader;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::Refusal;
use crate::pod;
use crate::reason::RefuseReason;

/// What the path of every rewritten probe starts with.
const PROBE_PATH: &str = "/app-health/";
/// What the path of every rewritten lifecycle hook starts with.
const HOOK_PATH: &str = "/app-lifecycle/";

/// The seconds that Kubernetes gives a probe where nobody says otherwise.
const DEFAULT_PROBE_TIMEOUT: u32 = 1;

/// A place in a container that may hold a handler.
struct Slot {
    /// The fields that lead to it.
    fields: &'static [&'static str],
    path: &'static str,
    /// The last segment of the path by which the proxy is asked.
    segment: &'static str,
}

const SLOTS: [Slot; 5] = [
    Slot {
        fields: &["readinessProbe"],
        path: PROBE_PATH,
        segment: "readyz",
    },
    Slot {
        fields: &["livenessProbe"],
        path: PROBE_PATH,
        segment: "livez",
    },
    Slot {
        fields: &["startupProbe"],
        path: PROBE_PATH,
        segment: "startupz",
    },
    Slot {
        fields: &["lifecycle", "preStop"],
        path: HOOK_PATH,
        segment: "prestopz",
    },
    Slot {
        fields: &["lifecycle", "postStart"],
        path: HOOK_PATH,
        segment: "poststartz",
    },
];

impl Slot {
    fn is_hook(&self) -> bool {
        self.path == HOOK_PATH
    }

    fn path_for(&self, container: &str) -> String {
        format!("{}{container}/{}", self.path, self.segment)
    }

    fn get_mut<'a>(
        &self,
        container: &'a mut Map<String, Value>,
    ) -> Option<&'a mut Map<String, Value>> {
        let (first, rest) = self.fields.split_first()?;
        let mut value = container.get_mut(*first)?;
        for field in rest {
            value = value.get_mut(*field)?;
        }
        value.as_object_mut()
    }
}

/// Rewrites the probes of one container, and adds what they were to `probes`.
pub(crate) fn rewrite(
    container: &mut Map<String, Value>,
    redirect: &RedirectConfig,
    hook_timeout: u32,
    probes: &mut BTreeMap<String, AppProbe>,
) -> Result<(), Refusal> {
    if SLOTS
        .iter()
        .all(|slot| !container.contains_key(slot.fields[0]))
    {
        return Ok(());
    }
    let Some(Value::String(name)) = container.get("name").cloned() else {
        return Ok(());
    };
    let named_ports = named_ports(container);
    for slot in &SLOTS {
        let Some(owner) = slot.get_mut(container) else {
            continue;
        };
        let Some((key, handler)) = find_handler(owner, slot.is_hook()) else {
            continue;
        };
        let Some(mut probe) = read(key, handler, &named_ports) else {
            continue;
        };
        if ports::RESERVED_IN_POD.contains(&probe.port) {
            return Err(refusal(slot, &name, key, handler, probe.port));
        }
        if !redirect.captures_inbound_port(probe.port) {
            continue;
        }
        if !reads_the_same(&write(&probe), handler) {
            probe.original = Some(handler.clone());
        }
        probe.timeout_seconds = match owner.get("timeoutSeconds").and_then(Value::as_u64) {
            Some(seconds) => u32::try_from(seconds).unwrap_or(u32::MAX),
            None if slot.is_hook() => hook_timeout,
            None => DEFAULT_PROBE_TIMEOUT,
        };
        let path = slot.path_for(&name);
        replace(owner, key, "httpGet", ask_proxy(&path));
        probes.insert(path, probe);
    }
    Ok(())
}

/// Gives a container back the probes that [`rewrite`] took.
pub(crate) fn restore(container: &mut Map<String, Value>, probes: &BTreeMap<String, AppProbe>) {
    let Some(Value::String(name)) = container.get("name").cloned() else {
        return;
    };
    for slot in &SLOTS {
        let Some(owner) = slot.get_mut(container) else {
            continue;
        };
        let path = slot.path_for(&name);
        if !owner
            .get("httpGet")
            .is_some_and(|handler| asks_proxy(handler, &path))
        {
            continue;
        }
        let Some(probe) = probes.get(&path) else {
            continue;
        };
        let original = probe.original.clone().unwrap_or_else(|| write(probe));
        replace(owner, "httpGet", handler_key(&probe.handler), original);
    }
}

/// The handler that asks the proxy for this path.
fn ask_proxy(path: &str) -> Value {
    let mut handler = Map::with_capacity(3);
    handler.insert("path".to_owned(), Value::from(path));
    handler.insert("port".to_owned(), Value::from(ports::PROXY_STATUS));
    handler.insert("scheme".to_owned(), Value::from("HTTP"));
    Value::Object(handler)
}

/// Whether a handler is one that [`rewrite`] made for this path.
fn asks_proxy(handler: &Value, path: &str) -> bool {
    handler.get("path").and_then(Value::as_str) == Some(path)
        && handler.get("port").and_then(pod::port_number) == Some(ports::PROXY_STATUS)
}

/// Replaces a field by another in the same place.
fn replace(owner: &mut Map<String, Value>, old: &str, new: &str, value: Value) {
    if old == new {
        owner.insert(new.to_owned(), value);
        return;
    }
    let mut value = Some(value);
    *owner = std::mem::take(owner)
        .into_iter()
        .filter_map(|(field, existing)| {
            if field == old {
                Some((new.to_owned(), value.take()?))
            } else {
                Some((field, existing))
            }
        })
        .collect();
}

/// The one handler that might meet the proxy. A probe with two is none that
/// Kubernetes accepts, and it is left for Kubernetes to refuse.
fn find_handler(owner: &Map<String, Value>, is_hook: bool) -> Option<(&'static str, &Value)> {
    let keys: &[&'static str] = if is_hook {
        &["httpGet"]
    } else {
        &["httpGet", "tcpSocket", "grpc"]
    };
    let mut found = keys
        .iter()
        .filter_map(|key| Some((*key, owner.get(*key)?)))
        .filter(|(_, handler)| handler.is_object());
    match (found.next(), found.next()) {
        (Some(handler), None) => Some(handler),
        _ => None,
    }
}

/// Reads a handler; nothing where it asks another host or its port is unknown.
fn read(key: &str, handler: &Value, named_ports: &[(String, u16)]) -> Option<AppProbe> {
    let text = |field: &str| match handler.get(field) {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    let host = text("host");
    if host.as_deref().is_some_and(|host| !host.is_empty()) {
        return None;
    }
    let (port, port_name) = resolve_port(handler.get("port")?, named_ports)?;
    let handler = match key {
        "httpGet" => ProbeHandler::HttpGet {
            path: text("path"),
            scheme: text("scheme"),
            host,
            http_headers: read_headers(handler.get("httpHeaders"))?,
        },
        "tcpSocket" => ProbeHandler::TcpSocket { host },
        _ => ProbeHandler::Grpc {
            service: text("service"),
        },
    };
    Some(AppProbe {
        handler,
        port,
        port_name,
        timeout_seconds: DEFAULT_PROBE_TIMEOUT,
        original: None,
    })
}

fn read_headers(headers: Option<&Value>) -> Option<Vec<ProbeHeader>> {
    let Some(Value::Array(headers)) = headers else {
        return Some(Vec::new());
    };
    headers
        .iter()
        .map(|header| {
            Some(ProbeHeader {
                name: header.get("name")?.as_str()?.to_owned(),
                value: header
                    .get("value")
                    .map_or(Some(""), Value::as_str)?
                    .to_owned(),
            })
        })
        .collect()
}

/// The names and numbers of a container's ports.
fn named_ports(container: &Map<String, Value>) -> Vec<(String, u16)> {
    pod::list(container, "ports")
        .iter()
        .filter_map(|port| {
            let number = pod::port_number(port.get("containerPort")?)?;
            Some((pod::name(port)?.to_owned(), number))
        })
        .collect()
}

/// The number of a port, and its name where it has one. Like the kubelet, names
/// are looked up in the same container, and a text that is no name may still be
/// a number.
fn resolve_port(port: &Value, named_ports: &[(String, u16)]) -> Option<(u16, Option<String>)> {
    let Some(text) = port.as_str() else {
        return Some((pod::port_number(port)?, None));
    };
    let named = named_ports.iter().find(|(name, _)| name == text);
    let number = match named {
        Some((_, number)) => *number,
        None => text.parse().ok().filter(|number| *number != 0)?,
    };
    Some((number, Some(text.to_owned())))
}

fn handler_key(handler: &ProbeHandler) -> &'static str {
    match handler {
        ProbeHandler::HttpGet { .. } => "httpGet",
        ProbeHandler::TcpSocket { .. } => "tcpSocket",
        ProbeHandler::Grpc { .. } => "grpc",
    }
}

/// The handler as a pod spec would have it, its fields in the order in which the
/// API server writes them; [`read`] reads it back.
fn write(probe: &AppProbe) -> Value {
    let mut handler = Map::new();
    let mut put = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            handler.insert(field.to_owned(), value);
        }
    };
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let port = match &probe.port_name {
        Some(name) => Value::from(name.as_str()),
        None => Value::from(probe.port),
    };
    match &probe.handler {
        ProbeHandler::HttpGet {
            path,
            scheme,
            host,
            http_headers,
        } => {
            put("path", text(path));
            put("port", Some(port));
            put("host", text(host));
            put("scheme", text(scheme));
            put("httpHeaders", write_headers(http_headers));
        }
        ProbeHandler::TcpSocket { host } => {
            put("port", Some(port));
            put("host", text(host));
        }
        ProbeHandler::Grpc { service } => {
            put("port", Some(port));
            put("service", text(service));
        }
    }
    Value::Object(handler)
}

fn write_headers(headers: &[ProbeHeader]) -> Option<Value> {
    let write = |header: &ProbeHeader| json!({"name": header.name, "value": header.value});
    (!headers.is_empty()).then(|| headers.iter().map(write).collect())
}

/// Whether two handlers are equal to a person too: with their fields in the same
/// order.
fn reads_the_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => one == other && one.keys().eq(other.keys()),
        _ => one == other,
    }
}

/// A probe that points to the sidecar itself: rewritten once and its original
/// lost, or never meant.
fn refusal(slot: &Slot, container: &str, key: &str, handler: &Value, port: u16) -> Refusal {
    let field = slot.fields.join(".");
    if key == "httpGet" && asks_proxy(handler, &slot.path_for(container)) {
        return Refusal {
            reason: RefuseReason::LostProbe,
            message: format!(
                "{field} of container {container:?} was rewritten by an earlier injection, and \
                 what it was before went with that sidecar; write the probe as the application \
                 has it"
            ),
        };
    }
    Refusal {
        reason: RefuseReason::ReservedPort,
        message: format!(
            "{field} of container {container:?} asks port {port}, which belongs to the sidecar; \
             let the application listen on another port"
        ),
    }
}
