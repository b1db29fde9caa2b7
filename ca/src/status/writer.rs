//! Writes the object's status, where this replica holds the Lease, and tells
//! people by Events what is new in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_crds::certificate_authority::{
    AuthorityKind, CertificateAuthority, CertificateAuthorityStatus, NAME, condition,
};
use bulkhead_crds::lease::Held;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::events::{self, Occurrence};
use super::expiry::{self, Urgency, urgency};
use super::{FIELD_MANAGER, Latest, object};
use crate::issuer::status::Status;

/// How often the time alone may have changed something.
const LOOK: Duration = Duration::from_secs(30);
/// Between two writes. What changes meanwhile is in the next.
const PAUSE: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(5);
const REPORTER: &str = "bulkhead.io/ca";
/// Of a note, in characters. The API server takes 1024 bytes.
const MAX_NOTE: usize = 250;

/// Writes the status, as one task.
pub struct Writer {
    api: Api<CertificateAuthority>,
    client: Client,
    latest: Latest,
    status: watch::Receiver<Arc<Status>>,
    held: Held,
    clock: Clock,
    /// How urgent each authority was when that was last told.
    told: HashMap<(AuthorityKind, u32), Urgency>,
    /// Whether this replica told, or would have, since it holds the Lease.
    tells: bool,
    /// What was written last, which the watch may not have shown yet.
    written: Option<CertificateAuthorityStatus>,
}

impl Writer {
    pub fn new(
        client: Client,
        namespace: &str,
        latest: Latest,
        status: watch::Receiver<Arc<Status>>,
        held: Held,
        clock: Clock,
    ) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            client,
            latest,
            status,
            held,
            clock,
            told: HashMap::new(),
            tells: false,
            written: None,
        }
    }

    /// Writes whatever changes until the drain starts.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = self.status.changed() => {}
                Ok(()) = self.latest.changed() => {}
                () = self.held.changed() => {}
                () = drain.started() => return,
            }
            let object = self.latest.borrow_and_update().clone();
            let status = Arc::clone(&self.status.borrow_and_update());
            let Some(object) = object.filter(|_| self.held.is_held()) else {
                self.written = None;
                self.tells = false;
                continue;
            };
            self.tend(&object, &status).await;
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = drain.started() => return,
            }
        }
    }

    async fn tend(&mut self, object: &CertificateAuthority, status: &Status) {
        let now = self.clock.now();
        let stored = CertificateAuthorityStatus {
            proxies: None,
            ..object.status.clone().unwrap_or_default()
        };
        let before = self.written.take().unwrap_or_else(|| stored.clone());
        let wanted = object::status(status, object.metadata.generation, &before, now);
        if wanted != before {
            if !self.write(&wanted).await {
                return;
            }
            for occurrence in events::between(&before, &wanted) {
                self.tell(object, occurrence).await;
            }
        }
        let expiring = self.expiring(&wanted, now);
        if !self.heir_to_told(&stored) {
            for occurrence in expiring {
                self.tell(object, occurrence).await;
            }
        }
        // Until the watch has shown it.
        self.written = Some(wanted).filter(|written| *written != stored);
    }

    /// Whether another replica has told of what expires already, as the object
    /// says: this one tells of what comes after that.
    fn heir_to_told(&mut self, stored: &CertificateAuthorityStatus) -> bool {
        let is_heir = !std::mem::replace(&mut self.tells, true);
        let mut conditions = stored.conditions.iter();
        is_heir
            && conditions.any(|found| found.type_ == condition::EXPIRING && found.status == "True")
    }

    /// Whether it was written.
    async fn write(&self, status: &CertificateAuthorityStatus) -> bool {
        let patch = json!({
            "apiVersion": CertificateAuthority::api_version(&()),
            "kind": CertificateAuthority::kind(&()),
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(patch);
        let write = self.api.patch_status(NAME, &parameters, &patch);
        let problem = match timeout(DEADLINE, write).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        tracing::warn!(
            error = problem,
            "writing the status of the CertificateAuthority failed and is tried again; nothing \
             else waits for it"
        );
        false
    }

    /// Authorities that are more urgent than was told.
    fn expiring(
        &mut self,
        status: &CertificateAuthorityStatus,
        now: SystemTime,
    ) -> Vec<Occurrence> {
        let mut found = Vec::new();
        for authority in &status.authorities {
            let key = (authority.kind, authority.generation);
            let Some(urgency) = urgency(authority, now) else {
                self.told.remove(&key);
                continue;
            };
            let told = self.told.insert(key, urgency);
            if told.is_none_or(|told| told < urgency) {
                let note = expiry::sentence(authority, now);
                found.push(events::warning("AuthorityExpiring", note));
            }
        }
        found
    }

    async fn tell(&self, object: &CertificateAuthority, occurrence: Occurrence) {
        let Occurrence {
            reason,
            note,
            is_warning,
        } = occurrence;
        tracing::info!(reason, note, "something happened to the CA's authorities");
        let event = Event {
            type_: if is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Rotating".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: None,
        };
        // One that has told something counts the next of that kind as the same, whatever
        // its note: of two roots that came one after the other, one would be told of.
        let recorder = Recorder::new(self.client.clone(), reporter);
        let problem = match timeout(DEADLINE, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        tracing::warn!(
            error = problem,
            "writing an Event failed; check that the ServiceAccount may create and patch \
             events.events.k8s.io"
        );
    }
}
