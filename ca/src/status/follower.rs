//! Makes the object where it is missing, and follows it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_crds::certificate_authority::{CertificateAuthority, NAME};
use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_runtime::drain;
use futures::StreamExt as _;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::FIELD_MANAGER;

/// How often it is made again where it is missing.
const MAKE_EVERY: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(5);

/// The object as it was last seen, if it was.
pub type Latest = watch::Receiver<Option<Arc<CertificateAuthority>>>;

/// Follows the object, as one task.
pub struct Follower {
    api: Api<CertificateAuthority>,
    owner: Owner,
    latest: watch::Sender<Option<Arc<CertificateAuthority>>>,
    are_orders_known: watch::Sender<bool>,
}

/// What has been seen of the object.
#[derive(Default)]
struct Seen {
    /// All of it has been listed once, so that it can be missing.
    is_listed: bool,
    is_there: bool,
    has_failed: bool,
}

impl Follower {
    pub fn new(client: Client, namespace: &str, owner: Owner) -> (Self, Latest) {
        let (latest, followed) = watch::channel(None);
        let follower = Self {
            api: Api::namespaced(client, namespace),
            owner,
            latest,
            are_orders_known: watch::Sender::new(false),
        };
        (follower, followed)
    }

    /// Whether it is known what people order: the object has been seen, or there
    /// is no such kind and nobody can order anything. A replica that took steps
    /// before would take a rotation back that somebody ordered long ago.
    pub fn are_orders_known(&self) -> watch::Receiver<bool> {
        self.are_orders_known.subscribe()
    }

    /// Follows it until the drain starts.
    pub async fn run(self, mut drain: drain::Watch) {
        let ours = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut events = pin!(watcher(self.api.clone(), ours).default_backoff());
        let mut tries = interval(MAKE_EVERY);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.take(event, &mut seen),
                    Some(Err(error)) => {
                        if is_no_kind(&error) {
                            self.are_orders_known.send_replace(true);
                        }
                        interrupted(&error, &mut seen);
                    }
                    None => return,
                },
                _ = tries.tick(), if seen.is_listed && !seen.is_there => self.make().await,
                () = drain.started() => return,
            }
        }
    }

    fn take(&self, event: Event<CertificateAuthority>, seen: &mut Seen) {
        match event {
            Event::Init => seen.is_there = false,
            Event::Apply(object) | Event::InitApply(object) => {
                seen.is_there = true;
                self.latest.send_replace(Some(Arc::new(object)));
                self.are_orders_known.send_replace(true);
            }
            Event::InitDone => {
                seen.is_listed = true;
                seen.has_failed = false;
                if !seen.is_there {
                    self.forget();
                }
            }
            Event::Delete(_) => {
                seen.is_there = false;
                self.forget();
            }
        }
    }

    /// The object is not there, and is about to be made again.
    fn forget(&self) {
        self.are_orders_known.send_replace(false);
        self.latest.send_replace(None);
    }

    /// Makes the object. Every replica may: applying the same twice changes
    /// nothing.
    async fn make(&self) {
        let make = async || -> kube::Result<()> {
            let Standing::Owned(owners) = self.owner.standing().await? else {
                return Ok(());
            };
            let object = json!({
                "apiVersion": CertificateAuthority::api_version(&()),
                "kind": CertificateAuthority::kind(&()),
                "metadata": { "name": NAME, "ownerReferences": owners },
                "spec": {},
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(object);
            self.api.patch(NAME, &parameters, &patch).await.map(drop)
        };
        let problem = match timeout(DEADLINE, make()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        tracing::warn!(
            error = problem,
            "making the CertificateAuthority failed and is tried again"
        );
    }
}

/// Whether the API server does not know the kind.
fn is_no_kind(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

fn interrupted(error: &watcher::Error, seen: &mut Seen) {
    if !seen.has_failed {
        seen.has_failed = true;
        tracing::warn!(
            %error,
            "the watch of the CertificateAuthority was interrupted and will be resumed; without \
             it nobody can start a rotation of the root; check that its kind is there (the \
             chart's crds.install) and that the ServiceAccount may list and watch it"
        );
    }
}
