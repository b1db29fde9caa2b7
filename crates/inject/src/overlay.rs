//! Renewing a container that is in the pod already.
//!
//! Between two calls others have been at our containers: Kubernetes filled in
//! defaults, a LimitRange set limits that a quota asks for, a registry mirror
//! rewrote the image. All of that must survive a second injection, and nothing
//! of what we ourselves wrote before and would not write now may.

use bulkhead_core::quantity::Quantity;
use bulkhead_core::sidecar::DOWNWARD_API;
use serde_json::Map;
use serde_json::Value;

use crate::pod;
use crate::status::Status;

/// Fields of a container that are ours alone: where we leave one out it goes.
const OWN_FIELDS: [&str; 7] = [
    "args",
    "command",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "restartPolicy",
    "startupProbe",
];

/// What the names of our variables start with.
const OWN_VARIABLES: &str = "BULKHEAD_";
/// What the names of our volumes start with.
const OWN_VOLUMES: &str = "bulkhead-";

/// `wanted`, with what others added to `present` since we wrote it.
pub(crate) fn renewed_container(present: &Value, wanted: Value, before: &Status) -> Value {
    let (Value::Object(present), Value::Object(wanted)) = (present, &wanted) else {
        return wanted;
    };
    let mut present = present.clone();
    for field in OWN_FIELDS {
        if !wanted.contains_key(field) {
            pod::remove(&mut present, field);
        }
    }
    let image = present.get("image").cloned();
    remove_own_resources(&mut present, &before.resources);
    let mut renewed = merged(&Value::Object(present), wanted);
    // Who rewrote the image we asked for may keep it until we ask for another.
    let asked_for = wanted.get("image").and_then(Value::as_str);
    if let (Some(image), true) = (image, asked_for == Some(before.image.as_str())) {
        renewed["image"] = image;
    }
    renewed
}

/// `wanted`, with what Kubernetes filled into `present`, if that is a volume of
/// the same kind: one of two kinds is refused.
pub(crate) fn renewed_volume(present: &Value, wanted: &Value) -> Value {
    match (present, wanted) {
        (Value::Object(fields), Value::Object(wanted))
            if fields.keys().all(|field| wanted.contains_key(field)) =>
        {
            merged(present, wanted)
        }
        _ => wanted.clone(),
    }
}

/// Takes out the requests and limits that we set, so that one that is no longer
/// wanted does not stay.
fn remove_own_resources(container: &mut Map<String, Value>, written: &Value) {
    for kind in ["requests", "limits"] {
        let Some(Value::Object(amounts)) = container
            .get_mut("resources")
            .and_then(|resources| resources.get_mut(kind))
        else {
            continue;
        };
        amounts.retain(|name, amount| {
            let written = written.get(kind).and_then(|written| written.get(name));
            !written.is_some_and(|written| is_same_amount(written, amount))
        });
    }
    if let Some(Value::Object(resources)) = container.get_mut("resources") {
        resources.retain(|_, amounts| amounts.as_object().is_none_or(|map| !map.is_empty()));
        if resources.is_empty() {
            pod::remove(container, "resources");
        }
    }
}

/// Kubernetes writes quantities in a form of its own: `0.1` comes back as
/// `100m`.
fn is_same_amount(one: &Value, other: &Value) -> bool {
    let quantity = |value: &Value| value.as_str()?.parse::<Quantity>().ok();
    one == other || quantity(one).is_some_and(|one| quantity(other) == Some(one))
}

/// Objects are merged field by field; the named lists of a container item by
/// item; of anything else the wanted value stands.
fn merged(present: &Value, wanted: &Map<String, Value>) -> Value {
    let mut result = present.as_object().cloned().unwrap_or_default();
    for (field, value) in wanted {
        let value = match (result.get(field), value) {
            (Some(present @ Value::Object(_)), Value::Object(wanted)) => merged(present, wanted),
            (Some(Value::Array(present)), Value::Array(wanted)) => {
                merged_list(field, present, wanted)
            }
            _ => value.clone(),
        };
        result.insert(field.clone(), value);
    }
    Value::Object(result)
}

fn merged_list(field: &str, present: &[Value], wanted: &[Value]) -> Value {
    let (key, is_ours): (&str, fn(&Value) -> bool) = match field {
        "env" => ("name", is_own_variable),
        "volumeMounts" => ("mountPath", is_own_mount),
        "ports" => ("containerPort", |_| true),
        // The sources of a projected volume, and whatever has no key.
        _ => return Value::Array(wanted.to_vec()),
    };
    let find = |list: &[Value], item: &Value| {
        list.iter()
            .position(|other| other.get(key).is_some() && other.get(key) == item.get(key))
    };
    let mut result = Vec::with_capacity(wanted.len());
    for item in present {
        match find(wanted, item).map(|place| &wanted[place]) {
            // A variable has a value or a source, never both.
            Some(wanted) if field == "env" && item.get("valueFrom").is_none() => {
                result.push(wanted.clone());
            }
            Some(Value::Object(wanted)) => result.push(merged(item, wanted)),
            _ if is_ours(item) => {}
            _ => result.push(item.clone()),
        }
    }
    for item in wanted {
        if find(present, item).is_none() {
            result.push(item.clone());
        }
    }
    Value::Array(result)
}

fn is_own_variable(variable: &Value) -> bool {
    pod::name(variable).is_some_and(|name| {
        name.starts_with(OWN_VARIABLES) || DOWNWARD_API.iter().any(|(own, _)| *own == name)
    })
}

fn is_own_mount(mount: &Value) -> bool {
    pod::name(mount).is_some_and(|volume| volume.starts_with(OWN_VOLUMES))
}
