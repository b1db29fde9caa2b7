//! Keeps the API server's configuration what it should be: by server-side
//! apply, when it is missing or differs, and never otherwise.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use bulkhead_crds::owner::{self, Owner};
use bulkhead_pki::certificate::{Certificate, Fingerprint};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use futures::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::ca_bundle::{self, Foreign};
use super::{Inputs, Standing, Target, configuration, differs};
use crate::metrics::Metrics;
use crate::stops::Stops;

/// The owner of the fields that we apply.
pub(crate) const FIELD_MANAGER: &str = "bulkhead-webhook";
/// How long the API server may take to apply.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two writes, failed or not. It grows while they follow each other: a
/// second version of ourselves, or somebody's GitOps tool, may want another
/// configuration, and two that write at once whenever the other has written
/// would keep the API server busy for nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long without a write, and the next ones follow each other quickly again.
const PEACE: Duration = Duration::from_secs(300);
/// Everything is looked at again this often, whatever the watches say.
const RESYNC: Duration = Duration::from_secs(60);

/// What of the registration does not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) system_namespace: String,
    pub(crate) inject_by_default: bool,
    pub(crate) self_test: bool,
}

/// Since when each CA, by its fingerprint, has been in every webhook of the
/// API server's configuration without a break.
pub(crate) type Registered = BTreeMap<Fingerprint, Instant>;

/// Keeps the configuration, as one task.
pub(crate) struct Keeper {
    pub(crate) settings: Settings,
    /// The namespaces that must be listed; nothing before they are known,
    /// because a list that is too short would leave pods without a sidecar.
    pub(crate) standings: watch::Receiver<Option<BTreeMap<String, Standing>>>,
    /// Our own CAs; none before there is a certificate.
    pub(crate) authorities: watch::Receiver<Vec<Certificate>>,
    /// The switches; nothing before they are known, because a registration
    /// that leaves them out would turn them back.
    pub(crate) stops: watch::Receiver<Option<Stops>>,
    pub(crate) owner: Owner,
    pub(crate) registered: watch::Sender<Registered>,
    pub(crate) condition: Condition,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// Where one look at things leads.
enum Outcome {
    /// There is nothing to do, or not everything is known yet.
    AtRest,
    /// Something was written.
    Written,
    /// Writing failed.
    Failed,
}

impl Keeper {
    pub(crate) async fn run(mut self, client: Client, mut drain: drain::Watch) {
        let api: Api<MutatingWebhookConfiguration> = Api::all(client);
        let changes = watch_object(api.clone(), &self.settings.name.clone());
        let mut changes = pin!(changes.default_backoff());
        // Nothing before the watch has said whether the object exists.
        let mut existing: Option<Option<MutatingWebhookConfiguration>> = None;
        let mut foreign = Foreign::default();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut may_write = Instant::now();
        let mut last_write = Instant::now();
        loop {
            let now = Instant::now();
            if let Some(existing) = &mut existing
                && now >= may_write
            {
                match self.reconcile(&api, existing, &mut foreign).await {
                    Outcome::AtRest => {}
                    Outcome::Written | Outcome::Failed => {
                        if last_write.elapsed() > PEACE {
                            backoff.reset();
                        }
                        last_write = Instant::now();
                        may_write = last_write + backoff.after_failure(jitter());
                    }
                }
            }
            let resync = Instant::now() + RESYNC.mul_f64(0.5 + 0.5 * jitter());
            let wake = [
                Some(resync),
                foreign.next_change(),
                Some(may_write),
                self.next_stop_end(now),
            ]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
            .unwrap_or(resync);
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(object)) => {
                        self.observe(object.as_ref());
                        existing = Some(object);
                    }
                    Some(Err(error)) => self.failed("watching", &error),
                    None => return,
                },
                Ok(()) = self.standings.changed() => {}
                Ok(()) = self.authorities.changed() => {}
                Ok(()) = self.stops.changed() => {}
                () = sleep_until(wake) => {}
                () = drain.started() => return,
            }
        }
    }

    async fn reconcile(
        &mut self,
        api: &Api<MutatingWebhookConfiguration>,
        existing: &mut Option<MutatingWebhookConfiguration>,
        foreign: &mut Foreign,
    ) -> Outcome {
        let Some(mut desired) = self.desired(existing.as_ref(), foreign) else {
            return Outcome::AtRest;
        };
        match timeout(DEADLINE, self.owner.standing()).await {
            Ok(Ok(owner::Standing::Owned(owners))) => {
                desired.metadata.owner_references = Some(owners).filter(|all| !all.is_empty());
            }
            Ok(Ok(owner::Standing::Uninstalling)) => return Outcome::AtRest,
            Ok(Err(error)) => {
                self.failed("finding the owner of", &error);
                return Outcome::Failed;
            }
            Err(_) => {
                self.failed(
                    "finding the owner of",
                    &format!("no answer within {DEADLINE:?}"),
                );
                return Outcome::Failed;
            }
        }
        if existing
            .as_ref()
            .is_some_and(|existing| !differs(existing, &desired))
        {
            self.noted(true);
            return Outcome::AtRest;
        }
        self.noted(false);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&desired);
        let applied = api.patch(&self.settings.name, &parameters, &patch);
        match timeout(DEADLINE, applied).await {
            Ok(Ok(applied)) => {
                self.metrics.registrations.inc();
                tracing::info!(
                    configuration = self.settings.name,
                    webhooks = applied.webhooks.as_ref().map_or(0, Vec::len),
                    "registered with the API server"
                );
                let is_right = !differs(&applied, &desired);
                self.noted(is_right);
                if !is_right {
                    tracing::warn!(
                        configuration = self.settings.name,
                        "the registration holds something that is not ours and was left there; \
                         `kubectl get --show-managed-fields` tells whose it is"
                    );
                }
                self.observe(Some(&applied));
                *existing = Some(applied);
                Outcome::Written
            }
            Ok(Err(error)) => {
                self.failed("applying", &error);
                Outcome::Failed
            }
            Err(_) => {
                self.failed("applying", &format!("no answer within {DEADLINE:?}"));
                Outcome::Failed
            }
        }
    }

    /// The configuration as it should be, where all that it depends on is
    /// known.
    fn desired(
        &mut self,
        existing: Option<&MutatingWebhookConfiguration>,
        foreign: &mut Foreign,
    ) -> Option<MutatingWebhookConfiguration> {
        let standings = self.standings.borrow_and_update().clone()?;
        let own = self.authorities.borrow_and_update().clone();
        let stops = self.stops.borrow_and_update().clone()?;
        if own.is_empty() {
            return None;
        }
        let present: Vec<Certificate> = existing
            .map(ca_bundle::registered)
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect();
        let bundle = foreign.merge(&own, &present, self.clock.now(), Instant::now());
        Some(configuration(&Inputs {
            name: self.settings.name.clone(),
            target: self.settings.target.clone(),
            ca_bundle: ca_bundle::to_pem(&bundle),
            system_namespace: self.settings.system_namespace.clone(),
            inject_by_default: self.settings.inject_by_default,
            standings,
            self_test: self.settings.self_test,
            owners: Vec::new(),
            stop: stops.condition(&self.settings.system_namespace, self.clock.now()),
        }))
    }

    /// When a switch ends by itself.
    fn next_stop_end(&self, now: Instant) -> Option<Instant> {
        let wall = self.clock.now();
        let end = self.stops.borrow().as_ref()?.next_end(wall)?;
        Some(now + end.duration_since(wall).unwrap_or_default())
    }

    /// Notes which CAs the API server verifies us by.
    fn observe(&self, existing: Option<&MutatingWebhookConfiguration>) {
        let bundles = existing.map(ca_bundle::registered).unwrap_or_default();
        let (first, others) = match bundles.split_first() {
            Some((first, others)) => (first.as_slice(), others),
            None => (&[][..], &[][..]),
        };
        let everywhere = first
            .iter()
            .filter(|certificate| others.iter().all(|bundle| bundle.contains(certificate)))
            .map(Certificate::fingerprint);
        let now = Instant::now();
        self.registered.send_modify(|registered| {
            *registered = everywhere
                .map(|print| {
                    let since = registered.get(&print).copied().unwrap_or(now);
                    (print, since)
                })
                .collect();
        });
    }

    /// The condition, once it holds, holds: a webhook that took itself out of
    /// its Service because somebody edited its configuration would turn a small
    /// difference into an outage.
    fn noted(&self, registered: bool) {
        self.metrics.registered.set(i64::from(registered));
        if registered {
            self.condition.set(true);
        }
    }

    fn failed(&self, doing: &str, error: &dyn std::fmt::Display) {
        self.metrics.registration_errors.inc();
        tracing::error!(
            configuration = self.settings.name,
            %error,
            "{doing} the webhook's registration failed and will be tried again; check that the \
             ServiceAccount may get, list, watch, create and patch mutatingwebhookconfigurations, and get its own \
             ClusterRole"
        );
    }
}
