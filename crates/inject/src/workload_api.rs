//! The application's way to the SPIFFE Workload API that its sidecar serves: a
//! mount and a variable in each of its containers, and both taken out again.
//!
//! A container that has the variable already keeps it: somebody told it to ask
//! elsewhere, such as an agent of SPIRE.

use std::collections::BTreeMap;

use bulkhead_core::sidecar::WORKLOAD_API_PATH;
use bulkhead_core::sidecar::WORKLOAD_API_VARIABLE;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::Refusal;
use crate::pod;
use crate::pod::CONTAINER_LISTS;

/// The volume that sidecar and application share: a folder in memory, which
/// nobody else has.
pub(crate) const VOLUME: &str = "bulkhead-workload-api";

/// What was done to one container.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Change {
    /// Whether it got the variable.
    variable: bool,
    #[serde(skip_serializing_if = "Before::is_list")]
    env: Before,
    #[serde(skip_serializing_if = "Before::is_list")]
    volume_mounts: Before,
}

/// What a list of the container was before something was put into it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Before {
    #[default]
    List,
    Absent,
    Null,
}

impl Before {
    fn is_list(&self) -> bool {
        *self == Self::List
    }
}

/// Where mount and variable were in a container that they were taken out of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Places {
    mount: Option<usize>,
    variable: Option<usize>,
}

/// The containers by their names, which are unique in a pod.
pub(crate) type ByContainer<T> = BTreeMap<String, T>;

/// Where the application finds the API (SPIFFE Workload Endpoint, 4).
fn address() -> String {
    format!("unix://{WORKLOAD_API_PATH}")
}

/// Puts mount and variable into each container of a pod spec that has none of
/// ours in it.
pub(crate) fn add(
    spec: &mut Map<String, Value>,
    places: &ByContainer<Places>,
) -> Result<ByContainer<Change>, Refusal> {
    let mut changes = BTreeMap::new();
    for list in CONTAINER_LISTS {
        let Some(Value::Array(containers)) = spec.get_mut(list) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let name = container_name(container);
            let places = places.get(&name).copied().unwrap_or_default();
            let mut change = Change::default();
            let (folder, _) = WORKLOAD_API_PATH
                .rsplit_once('/')
                .expect("a literal with slashes");
            let mount = json!({"mountPath": folder, "name": VOLUME, "readOnly": true});
            change.volume_mounts = insert(container, "volumeMounts", mount, places.mount)?;
            if !has_variable(container) {
                let variable = json!({"name": WORKLOAD_API_VARIABLE, "value": address()});
                change.env = insert(container, "env", variable, places.variable)?;
                change.variable = true;
            }
            changes.insert(name, change);
        }
    }
    Ok(changes)
}

/// Takes them out again, as far as they are what was put in.
pub(crate) fn remove(
    spec: &mut Map<String, Value>,
    changes: &ByContainer<Change>,
) -> ByContainer<Places> {
    let mut places = BTreeMap::new();
    for list in CONTAINER_LISTS {
        let Some(Value::Array(containers)) = spec.get_mut(list) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let name = container_name(container);
            let change = changes.get(&name).cloned().unwrap_or_default();
            let is_mount = |mount: &Value| pod::name(mount) == Some(VOLUME);
            let mount = take(container, "volumeMounts", is_mount, change.volume_mounts);
            let is_variable = |variable: &Value| {
                change.variable
                    && pod::name(variable) == Some(WORKLOAD_API_VARIABLE)
                    && variable.get("value") == Some(&Value::String(address()))
            };
            let variable = take(container, "env", is_variable, change.env);
            places.insert(name, Places { mount, variable });
        }
    }
    places
}

/// The containers that ask for the API elsewhere.
pub(crate) fn elsewhere<'a>(
    containers: impl Iterator<Item = &'a Map<String, Value>>,
) -> Vec<&'a str> {
    let asks_elsewhere = |container: &&Map<String, Value>| {
        let variables = pod::list(container, "env");
        variables.iter().any(|variable| {
            pod::name(variable) == Some(WORKLOAD_API_VARIABLE)
                && variable.get("value") != Some(&Value::String(address()))
        })
    };
    containers
        .filter(asks_elsewhere)
        .filter_map(|container| container.get("name")?.as_str())
        .collect()
}

fn container_name(container: &Map<String, Value>) -> String {
    let name = container.get("name").and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}

fn has_variable(container: &Map<String, Value>) -> bool {
    let variables = pod::list(container, "env");
    variables
        .iter()
        .any(|variable| pod::name(variable) == Some(WORKLOAD_API_VARIABLE))
}

fn insert(
    container: &mut Map<String, Value>,
    field: &str,
    item: Value,
    place: Option<usize>,
) -> Result<Before, Refusal> {
    let (before, list) = match container.get_mut(field) {
        Some(Value::Array(list)) => {
            let place = place.unwrap_or(list.len()).min(list.len());
            list.insert(place, item);
            return Ok(Before::List);
        }
        Some(Value::Null) => (Before::Null, vec![item]),
        None => (Before::Absent, vec![item]),
        Some(_) => {
            let name = container_name(container);
            let problem = format!("{field} of container {name:?} is not a list");
            return Err(pod::malformed(&problem));
        }
    };
    container.insert(field.to_owned(), Value::Array(list));
    Ok(before)
}

/// Takes an item out, and says where it was.
fn take(
    container: &mut Map<String, Value>,
    field: &str,
    is_ours: impl Fn(&Value) -> bool,
    before: Before,
) -> Option<usize> {
    let Some(Value::Array(list)) = container.get_mut(field) else {
        return None;
    };
    let place = list.iter().position(&is_ours)?;
    list.retain(|item| !is_ours(item));
    if list.is_empty() {
        match before {
            Before::List => {}
            Before::Absent => drop(pod::remove(container, field)),
            Before::Null => drop(container.insert(field.to_owned(), Value::Null)),
        }
    }
    Some(place)
}
