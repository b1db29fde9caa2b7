//! The switches that are on: pods that are created now get no sidecar.
//!
//! Where the API server knows MutatingAdmissionPolicies (Kubernetes 1.36) it
//! obeys the switches itself, and we only take them into account. Where it does
//! not, our own registration leaves such pods out, so that writing it anew, at
//! a restart say, turns no switch back.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::SystemTime;

use bulkhead_crds::emergency::{Emergency as _, InjectionStop, match_condition};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use futures::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MatchCondition;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::metrics::Metrics;

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const POLICIES: &str = "mutatingadmissionpolicies";
/// Between attempts to ask the API server what it serves.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is known of the switches.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stops {
    /// Those that are there, whether or not their time is over.
    pub(crate) all: Vec<InjectionStop>,
    /// Whether the registration has to leave pods out.
    pub(crate) by_registration: bool,
}

impl Stops {
    /// Those that are on.
    pub(crate) fn on(&self, now: SystemTime) -> impl Iterator<Item = &InjectionStop> {
        self.all.iter().filter(move |stop| stop.is_on(now))
    }

    /// The condition that leaves their pods out of the registration, where it
    /// has to do that.
    pub(crate) fn condition(
        &self,
        system_namespace: &str,
        now: SystemTime,
    ) -> Option<MatchCondition> {
        if !self.by_registration {
            return None;
        }
        match_condition(self.on(now), system_namespace)
    }

    /// Whether a pod would be left without its sidecar.
    pub(crate) fn cover(
        &self,
        system_namespace: &str,
        pod_namespace: &str,
        pod_labels: &BTreeMap<String, String>,
        now: SystemTime,
    ) -> bool {
        self.on(now)
            .any(|stop| stop.covers(system_namespace, pod_namespace, pod_labels))
    }

    /// When the next of them ends by itself.
    pub(crate) fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        self.on(now)
            .filter_map(|stop| stop.spec.terms.until.as_ref())
            .map(|until| SystemTime::from(until.0))
            .min()
    }
}

/// Watches the switches until the drain starts. Nothing is sent before it is
/// known which are on; where they are not served, none is.
pub(crate) async fn watch_stops(
    client: Client,
    known: watch::Sender<Option<Stops>>,
    clock: Clock,
    metrics: Metrics,
    mut drain: drain::Watch,
) {
    let by_registration = tokio::select! {
        served = serves_policies(&client) => !served,
        () = drain.started() => return,
    };
    let api: Api<InjectionStop> = Api::all(client);
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut stops = BTreeMap::new();
    let mut listed = BTreeMap::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = drain.started() => return,
        };
        let key = |stop: &InjectionStop| (stop.namespace().unwrap_or_default(), stop.name_any());
        match event {
            Some(Ok(Event::Init)) => {
                listed.clear();
                continue;
            }
            Some(Ok(Event::InitApply(stop))) => {
                listed.insert(key(&stop), stop);
                continue;
            }
            Some(Ok(Event::InitDone)) => stops = std::mem::take(&mut listed),
            Some(Ok(Event::Apply(stop))) => {
                stops.insert(key(&stop), stop);
            }
            Some(Ok(Event::Delete(stop))) => {
                stops.remove(&key(&stop));
            }
            // Without the kind there is no switch; without the permission we
            // cannot know, and pods must not wait for it.
            Some(Err(error)) if is_refused(&error) => stops.clear(),
            Some(Err(error)) => {
                metrics.stop_watch_errors.inc();
                tracing::warn!(
                    %error,
                    "the watch of InjectionStops was interrupted and will be resumed"
                );
                continue;
            }
            None => return,
        }
        let now = Stops {
            all: stops.values().cloned().collect(),
            by_registration,
        };
        let on = now.on(clock.now());
        metrics.stopped(on.map(|stop| stop.namespace().unwrap_or_default()));
        let now = Some(now);
        known.send_if_modified(|known| {
            let has_changed = *known != now;
            *known = now;
            has_changed
        });
    }
}

/// Whether the API server obeys the switches itself; asked until it answers.
async fn serves_policies(client: &Client) -> bool {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match client.list_api_group_resources(ADMISSION).await {
            Ok(served) => return served.resources.iter().any(|found| found.name == POLICIES),
            Err(error) => tracing::warn!(%error, "asking what the API server serves failed"),
        }
        sleep(backoff.after_failure(jitter())).await;
    }
}

fn is_refused(error: &watcher::Error) -> bool {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => return false,
    };
    let kube::Error::Api(status) = error else {
        return false;
    };
    if status.code == 403 {
        tracing::warn!(
            error = status.message,
            "the ServiceAccount may not list InjectionStops (emergency.bulkhead.io), so switches \
             are not taken into account"
        );
    }
    matches!(status.code, 403 | 404)
}
