//! The name of the workload that a pod belongs to, for logs and metrics: what a
//! person calls it, not what a controller made of it.

use serde_json::Value;

use crate::pod;
use crate::pod::Pod;

/// The name of the Deployment, StatefulSet, CronJob and so on, or of the pod
/// itself where nothing owns it.
pub(crate) fn name(pod: Pod<'_>) -> Option<String> {
    let owner = pod
        .metadata("ownerReferences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    if let Some((owner, kind)) = owner.and_then(|owner| {
        let kind = owner.get("kind").and_then(Value::as_str);
        Some((pod::name(owner)?, kind.unwrap_or_default()))
    }) {
        return Some(controller_of(kind, owner, pod).to_owned());
    }
    let text = |field| pod.metadata(field).and_then(Value::as_str);
    text("name")
        .or_else(|| text("generateName").map(|prefix| prefix.trim_end_matches('-')))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

/// A Deployment's ReplicaSet is called after it and the hash of the template; a
/// CronJob's Job after it and the minute for which it was made.
fn controller_of<'a>(kind: &str, owner: &'a str, pod: Pod<'_>) -> &'a str {
    let stem = match kind {
        "ReplicaSet" => {
            let hash = pod
                .metadata("labels")
                .and_then(|labels| labels.get("pod-template-hash"));
            hash.and_then(Value::as_str)
                .and_then(|hash| owner.strip_suffix(hash)?.strip_suffix('-'))
        }
        "Job" => owner.rsplit_once('-').and_then(|(stem, minute)| {
            let is_minute = minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit());
            is_minute.then_some(stem)
        }),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty()).unwrap_or(owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(metadata: Value) -> Option<String> {
        let document = json!({
            "metadata": metadata,
            "spec": {"containers": [{"name": "app"}]},
        });
        name(Pod::new(&document).unwrap())
    }

    fn owned_by(kind: &str, name: &str, hash: &str) -> Option<String> {
        named(json!({
            "name": "some-pod",
            "labels": {"pod-template-hash": hash},
            "ownerReferences": [
                {"kind": "Other", "name": "x"},
                {"kind": kind, "name": name, "controller": true},
            ],
        }))
    }

    #[test]
    fn a_workload_has_the_name_that_people_gave_it() {
        for (kind, owner, expected) in [
            ("ReplicaSet", "cart-6d5f7c", "cart"),
            ("ReplicaSet", "cart", "cart"),
            ("StatefulSet", "db", "db"),
            ("Job", "report-29381234", "report"),
            ("Job", "migrate-v2", "migrate-v2"),
            ("Rollout", "cart", "cart"),
        ] {
            assert_eq!(owned_by(kind, owner, "6d5f7c").as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_pod_of_its_own_is_its_own_workload() {
        assert_eq!(named(json!({"name": "one"})).as_deref(), Some("one"));
        assert_eq!(
            named(json!({"generateName": "one-"})).as_deref(),
            Some("one")
        );
        assert_eq!(named(json!({})), None);
        assert_eq!(named(Value::Null), None);
    }
}
