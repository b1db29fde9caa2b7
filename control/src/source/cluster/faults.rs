//! Objects that cannot be honoured as they are: said in the log and, for whoever
//! wrote them, in an Event on the object itself.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::metrics::Metrics;
use crate::object::{Key, Kind};

const REPORTER: &str = "bulkhead.io/control";
/// Events that wait to be written; what comes beside is in the log.
const WAITING: usize = 100;
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest note, in characters; Kubernetes takes a kilobyte.
const MAX_NOTE: usize = 500;

/// What is wrong with an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// What was known of it before holds.
    Unreadable(String),
    /// It can be read, and part of it means nothing.
    WithoutEffect(String),
}

impl Fault {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "Unreadable",
            Self::WithoutEffect(_) => "WithoutEffect",
        }
    }

    fn note(&self) -> String {
        let note = match self {
            Self::Unreadable(problem) => format!(
                "Bulkhead cannot read this object, and what it said before stays in force: \
                 {problem}"
            ),
            Self::WithoutEffect(problem) => format!("To Bulkhead this means nothing: {problem}"),
        };
        note.chars().take(MAX_NOTE).collect()
    }
}

/// The faulty objects of one kind.
pub(super) struct Faults {
    kind: Kind,
    known: BTreeMap<Key, Fault>,
    metrics: Metrics,
    events: Events,
}

impl Faults {
    pub(super) fn new(kind: Kind, metrics: Metrics, events: Events) -> Self {
        Self {
            kind,
            known: BTreeMap::new(),
            metrics,
            events,
        }
    }

    /// Notes how an object is; what was said of it is not said again.
    pub(super) fn note(&mut self, key: &Key, fault: Option<Fault>, object: ObjectReference) {
        if self.known.get(key) == fault.as_ref() {
            return;
        }
        let Some(fault) = fault else {
            return self.forget(key);
        };
        let (reason, note) = (fault.reason(), fault.note());
        if matches!(fault, Fault::Unreadable(_)) {
            self.metrics.source_error(self.kind.as_str());
        }
        tracing::error!(kind = self.kind.as_str(), object = %key, reason, "{note}");
        self.known.insert(key.clone(), fault);
        self.events.say(reason, note, object);
        self.count();
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.known.remove(key).is_some() {
            self.count();
        }
    }

    /// Only these objects are there.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Key) -> bool) {
        self.known.retain(|key, _| is_there(key));
        self.count();
    }

    fn count(&self) {
        self.metrics.faulty_objects(self.kind, self.known.len());
    }
}

/// Writes Events, beside the watches: those must not wait for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events(mpsc::Sender<(Event, ObjectReference)>);

impl Events {
    /// The Events, and the task that writes them for as long as somebody says
    /// some.
    pub(crate) fn new(client: Client, instance: &str) -> (Self, impl Future<Output = ()> + use<>) {
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        let recorder = Recorder::new(client, reporter);
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let writing = async move {
            while let Some((event, object)) = receiver.recv().await {
                let problem = match timeout(DEADLINE, recorder.publish(&event, &object)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {DEADLINE:?}"),
                };
                tracing::warn!(
                    error = problem,
                    "writing an Event failed; check that the ServiceAccount may create and patch \
                     events.events.k8s.io"
                );
            }
        };
        (Self(sender), writing)
    }

    fn say(&self, reason: &str, note: String, object: ObjectReference) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reading".to_owned(),
            secondary: None,
        };
        // Where very many are faulty at once, the log has them all.
        let _ = self.0.try_send((event, object));
    }
}
