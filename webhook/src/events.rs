//! Events: what a person who looks at the workload should know of.
//!
//! ```text
//!  review ──try_send──▶ queue (bounded) ──▶ said lately? ──▶ API server, some a second
//!                │ full: dropped, counted
//! ```
//!
//! A review never waits for an Event. A ReplicaSet whose pods are refused tries
//! again and again, so the same Event is said once in a while only.

use std::collections::HashMap;
use std::time::Duration;

use bulkhead_runtime::drain;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::metrics::Metrics;

/// Notices that wait. More than these come only from a storm, in which the
/// first ones tell the story.
const QUEUE: usize = 256;
/// The same thing about the same object is not said again for this long.
const SILENCE: Duration = Duration::from_secs(600);
/// Different things that are remembered as said.
const MEMORY: usize = 1024;
/// The pause after each Event: at most five a second.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the API server may take for one.
const DEADLINE: Duration = Duration::from_secs(5);
/// The API server takes notes of up to 1024 bytes.
const MAX_NOTE: usize = 1000;
/// What people see as the source.
const REPORTER: &str = "bulkhead.io/webhook";

/// Something worth saying about a pod that was not injected.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Notice {
    regarding: Regarding,
    /// A word in upper camel case, such as `InjectionRefused`.
    reason: &'static str,
    note: String,
}

/// The workload that a notice is about. An Event's reference, reduced to what
/// names it, because references do not hash.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
struct Regarding {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

impl Notice {
    /// `pod` is not stored yet, and a refused one never will be, so the notice
    /// is about the pod's controller, or its namespace where it has none.
    pub(crate) fn about(
        pod: &Value,
        namespace: &str,
        reason: &'static str,
        mut note: String,
    ) -> Self {
        let end = (0..=MAX_NOTE.min(note.len())).rfind(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or(0));
        Self {
            regarding: controller(pod, namespace).unwrap_or_else(|| Regarding {
                api_version: "v1".to_owned(),
                kind: "Namespace".to_owned(),
                namespace: namespace.to_owned(),
                name: namespace.to_owned(),
                uid: String::new(),
            }),
            reason,
            note,
        }
    }
}

fn controller(pod: &Value, namespace: &str) -> Option<Regarding> {
    let owner = pod
        .pointer("/metadata/ownerReferences")?
        .as_array()?
        .iter()
        .find(|owner| owner["controller"] == Value::Bool(true))?;
    let text = |field: &str| owner[field].as_str().map(ToOwned::to_owned);
    Some(Regarding {
        api_version: text("apiVersion")?,
        kind: text("kind")?,
        namespace: namespace.to_owned(),
        name: text("name")?,
        uid: text("uid")?,
    })
}

/// The end of the queue that reviews hold. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Notices {
    /// Nothing where there is no API server to tell.
    queue: Option<mpsc::Sender<Notice>>,
    metrics: Metrics,
}

impl Notices {
    /// The end to send to, and the work of saying it, where there is a client.
    pub(crate) fn new(
        client: Option<Client>,
        instance: &str,
        metrics: &Metrics,
    ) -> (Self, Option<Speaker>) {
        let metrics = metrics.clone();
        let Some(client) = client else {
            let silent = Self {
                queue: None,
                metrics,
            };
            return (silent, None);
        };
        let (queue, notices) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        let speaker = Speaker {
            recorder: Recorder::new(client, reporter),
            notices,
            said: Said::default(),
            metrics: metrics.clone(),
        };
        let notices = Self {
            queue: Some(queue),
            metrics,
        };
        (notices, Some(speaker))
    }

    /// Queues a notice; drops it where the queue is full.
    pub(crate) fn send(&self, notice: Notice) {
        if let Some(queue) = &self.queue
            && queue.try_send(notice).is_err()
        {
            self.metrics.event("dropped");
        }
    }
}

/// Says what is queued.
pub(crate) struct Speaker {
    recorder: Recorder,
    notices: mpsc::Receiver<Notice>,
    said: Said,
    metrics: Metrics,
}

impl Speaker {
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        loop {
            let notice = tokio::select! {
                notice = self.notices.recv() => notice,
                () = drain.started() => return,
            };
            let Some(notice) = notice else { return };
            if !self.said.is_news(&notice, Instant::now()) {
                self.metrics.event("repeated");
                continue;
            }
            self.say(notice).await;
            sleep(PAUSE).await;
        }
    }

    async fn say(&self, notice: Notice) {
        let Notice {
            regarding,
            reason,
            note,
        } = notice;
        let reference = ObjectReference {
            api_version: Some(regarding.api_version),
            kind: Some(regarding.kind),
            namespace: Some(regarding.namespace),
            name: Some(regarding.name),
            uid: Some(regarding.uid).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Injecting".to_owned(),
            secondary: None,
        };
        let problem = match timeout(DEADLINE, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {
                self.metrics.event("written");
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        self.metrics.event("failed");
        tracing::warn!(
            error = problem,
            object = reference.name,
            namespace = reference.namespace,
            reason,
            "writing an Event failed; check that the ServiceAccount may create and patch \
             events.events.k8s.io"
        );
    }
}

/// What was said lately.
#[derive(Default)]
struct Said(HashMap<Notice, Instant>);

impl Said {
    /// Whether nobody said this lately; from now on, somebody did.
    fn is_news(&mut self, notice: &Notice, now: Instant) -> bool {
        if let Some(at) = self.0.get(notice)
            && now.duration_since(*at) < SILENCE
        {
            return false;
        }
        if self.0.len() >= MEMORY {
            self.0.retain(|_, at| now.duration_since(*at) < SILENCE);
        }
        // Memory full of fresh news is a storm: stay quiet until it passes.
        if self.0.len() >= MEMORY {
            return false;
        }
        self.0.insert(notice.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notice(note: &str) -> Notice {
        Notice::about(&json!({}), "shop", "InjectionRefused", note.to_owned())
    }

    #[test]
    fn a_notice_is_about_the_pods_controller_and_else_its_namespace() {
        let pod = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-7f", "uid": "2",
             "controller": true},
        ]}});
        let owned = Notice::about(&pod, "shop", "InjectionRefused", String::new()).regarding;
        assert_eq!(
            (owned.kind.as_str(), owned.name.as_str()),
            ("ReplicaSet", "cart-7f")
        );
        assert_eq!(
            (owned.namespace.as_str(), owned.uid.as_str()),
            ("shop", "2")
        );
        let alone = notice("").regarding;
        assert_eq!(
            (alone.kind.as_str(), alone.name.as_str()),
            ("Namespace", "shop")
        );
    }

    #[test]
    fn owner_references_of_any_shape_do_no_harm() {
        for owners in [
            json!(null),
            json!(7),
            json!([null, 7, "x", []]),
            json!([{"controller": true}]),
            json!([{"controller": true, "apiVersion": 1, "kind": 2, "name": 3, "uid": 4}]),
        ] {
            let pod = json!({"metadata": {"ownerReferences": owners}});
            let notice = Notice::about(&pod, "shop", "InjectionRefused", String::new());
            assert_eq!(notice.regarding.kind, "Namespace");
        }
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let notice = notice(&"ü".repeat(2000));
        assert_eq!(notice.note, "ü".repeat(MAX_NOTE / 2));
    }

    #[test]
    fn the_same_thing_is_said_again_only_after_a_while() {
        let mut said = Said::default();
        let start = Instant::now();
        assert!(said.is_news(&notice("a"), start));
        assert!(!said.is_news(&notice("a"), start + SILENCE / 2));
        assert!(said.is_news(&notice("b"), start + SILENCE / 2));
        assert!(said.is_news(&notice("a"), start + SILENCE));
    }

    #[test]
    fn a_storm_of_different_things_is_bounded_and_passes() {
        let mut said = Said::default();
        let start = Instant::now();
        let news = (0..2 * MEMORY)
            .filter(|number| said.is_news(&notice(&number.to_string()), start))
            .count();
        assert_eq!(news, MEMORY);
        assert!(said.is_news(&notice("later"), start + SILENCE));
    }
}
