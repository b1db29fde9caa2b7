//! One replica does what needs doing once: the one that holds the Lease.
//!
//! Everything that is done so may also be done twice without harm: who holds the
//! lease is a matter of economy, not of safety.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::timeout;

/// The Lease's name.
const NAME: &str = "bulkhead-control";
/// How long it holds without being renewed.
const HOLDS: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(4);

/// Whether this replica holds the lease. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(Arc<AtomicBool>);

impl Held {
    pub(crate) fn is_held(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Tries to hold the lease.
pub(crate) struct Holder {
    pub(crate) api: Api<Lease>,
    pub(crate) owner: Owner,
    pub(crate) instance: String,
    pub(crate) clock: Clock,
    pub(crate) held: Held,
}

impl Holder {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        owner: Option<&str>,
        instance: String,
        clock: Clock,
    ) -> (Self, Held) {
        let held = Held::default();
        let holder = Self {
            api: Api::namespaced(client.clone(), namespace),
            owner: Owner::named(client, owner),
            instance,
            clock,
            held: held.clone(),
        };
        (holder, held)
    }

    /// Holds it, or waits for it, until the drain starts.
    pub(crate) async fn run(self, mut drain: drain::Watch) {
        let mut tries = tokio::time::interval(RENEW_EVERY);
        tries.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tries.tick() => {}
                () = drain.started() => break,
            }
            let held = match timeout(DEADLINE, self.renew()).await {
                Ok(Ok(held)) => held,
                // It may be another's by now.
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = NAME, "renewing the lease failed");
                    false
                }
                Err(_) => false,
            };
            if self.held.0.swap(held, Ordering::Relaxed) != held {
                tracing::info!(held, lease = NAME, "the lease has changed hands");
            }
        }
        self.held.0.store(false, Ordering::Relaxed);
    }

    async fn renew(&self) -> kube::Result<bool> {
        let now = self.clock.now();
        let parameters = PostParams::default();
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let Standing::Owned(owners) = self.owner.standing().await? else {
                return Ok(false);
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    owner_references: Some(owners),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(now)),
            };
            return taken(self.api.create(&parameters, &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let renewed = spec
            .renew_time
            .as_ref()
            .map(|time| SystemTime::from(time.0));
        let is_over = renewed
            .is_none_or(|renewed| now.duration_since(renewed).is_ok_and(|since| since > HOLDS));
        let is_mine = spec.holder_identity.as_deref() == Some(self.instance.as_str());
        if !(is_mine || is_over) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(now));
        // The resource version in it sees to it that one replica wins.
        taken(self.api.replace(NAME, &parameters, &lease).await)
    }

    fn spec(&self, now: SystemTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.instance.clone()),
            lease_duration_seconds: Some(HOLDS.as_secs().try_into().unwrap_or(i32::MAX)),
            renew_time: now.try_into().ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }
}

/// Whether a write made the lease ours; another replica may have been faster.
fn taken(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
