//! The slots in a Secret, which all replicas share, or in memory where there is
//! no API server.
//!
//! Whoever writes says which version it has read, so of two replicas that renew
//! at once one wins and the other reads what it wrote.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_pki::serving::ServerName;
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use futures::stream::{self, Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};
use tokio::time::{Instant, sleep_until, timeout};

use super::slots::{Circumstances, Slots, Spread, Step};
use super::{CredentialError, Lifetimes, Publisher};
use crate::metrics::Metrics;

/// How long the API server may take for one call.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between looks at the plan: no longer, because the wall clock may be moved
/// while we wait by the machine's other clock, and no shorter, whatever a plan
/// says.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// Steps that follow each other without a wait, at most.
const MAX_STEPS: usize = 8;

/// The pause after so many.
const STEPS_PAUSE: Duration = Duration::from_secs(1);

/// Where the slots are kept.
pub(crate) enum Store {
    /// For as long as the process lives.
    Memory,
    Secret(Box<StoredSecret>),
}

pub(crate) struct StoredSecret {
    api: Api<Secret>,
    name: String,
    /// What takes the Secret along when it is deleted itself.
    owner: Owner,
}

impl Store {
    pub(crate) fn secret(client: Client, namespace: &str, name: &str, owner: Owner) -> Self {
        Self::Secret(Box::new(StoredSecret {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            owner,
        }))
    }

    /// The Secret, now and whenever it changes; nothing where there is none.
    fn changes(&self) -> impl Stream<Item = watcher::Result<Option<Secret>>> + use<> {
        match self {
            Self::Memory => stream::once(async { Ok(None) })
                .chain(stream::pending())
                .left_stream(),
            Self::Secret(stored) => watch_object(stored.api.clone(), &stored.name)
                .default_backoff()
                .right_stream(),
        }
    }

    async fn read(&self) -> Result<Option<Secret>, StoreError> {
        match self {
            Self::Memory => Ok(None),
            Self::Secret(stored) => in_time(stored.api.get_opt(&stored.name)).await,
        }
    }

    /// Writes the slots over `stored`, the version of it that was read.
    async fn write(
        &self,
        slots: &Slots,
        stored: Option<&Secret>,
    ) -> Result<Option<Secret>, StoreError> {
        let Self::Secret(place) = self else {
            return Ok(None);
        };
        let StoredSecret { api, name, owner } = &**place;
        let owners = match in_time(owner.standing()).await? {
            Standing::Owned(owners) => Some(owners).filter(|all| !all.is_empty()),
            Standing::Uninstalling => return Err(StoreError::Uninstalling),
        };
        let mut secret = stored.cloned().unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        });
        if owners.is_some() {
            secret.metadata.owner_references = owners;
        }
        let data = slots.to_data()?;
        secret.data = Some(
            data.into_iter()
                .map(|(name, bytes)| (name, ByteString(bytes)))
                .collect(),
        );
        let parameters = PostParams {
            field_manager: Some(crate::registration::keeper::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let written = if stored.is_some() {
            in_time(api.replace(name, &parameters, &secret)).await
        } else {
            in_time(api.create(&parameters, &secret)).await
        };
        written.map(Some)
    }
}

async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, StoreError> {
    match timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(StoreError::Conflict),
        Ok(Err(error)) => Err(StoreError::Api(Box::new(error))),
        Err(_) => Err(StoreError::Deadline),
    }
}

/// Why the slots could not be read, made or written.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error("somebody else wrote the Secret at the same time")]
    Conflict,
    #[error(
        "{0}; check that the ServiceAccount may get, list, watch, create and update Secrets in \
         its namespace, and get its own ClusterRole"
    )]
    Api(#[source] Box<kube::Error>),
    #[error("the ClusterRole that is to own the Secret is gone: Bulkhead is being uninstalled")]
    Uninstalling,
    #[error("the API server did not answer within {DEADLINE:?}")]
    Deadline,
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Keeps the slots, as one task.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) names: Vec<ServerName>,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) publisher: Publisher,
    pub(crate) loaded: Condition,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// What the keeper remembers between two looks.
#[derive(Default)]
struct Memory {
    slots: Option<Slots>,
    /// The Secret as it was read or written last.
    stored: Option<Secret>,
    /// The Secret is not what `slots` are: it is gone, or cannot be used.
    is_lost: bool,
    /// The next CA's fingerprint, and since when it has been published.
    next_published: Option<(Fingerprint, Instant)>,
    spread: Spread,
}

impl Keeper {
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let mut changes = pin!(self.store.changes());
        let mut memory = Memory::default();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        // Nothing before it is known whether there is a Secret.
        let mut wake = None;
        loop {
            let rest = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(stored)) => {
                        if let Err(error) = memory.adopt(stored) {
                            self.failed(&error);
                        }
                    }
                    Some(Err(error)) => {
                        self.failed(&error);
                        continue;
                    }
                    None => return,
                },
                () = rest => {}
                () = self.publisher.changed() => {
                    self.publisher.pass(self.clock.now());
                    if wake.is_none() {
                        continue;
                    }
                }
                () = drain.started() => return,
            }
            let wait = match self.keep(&mut memory).await {
                Ok(at) => {
                    backoff.reset();
                    let left = at.duration_since(self.clock.now()).unwrap_or_default();
                    left.clamp(SHORTEST_WAIT, LONGEST_WAIT)
                }
                Err(error) => {
                    self.failed(&error);
                    backoff.after_failure(jitter())
                }
            };
            wake = Some(Instant::now() + wait);
        }
    }

    /// Takes every step that is due, and says when to look again.
    async fn keep(&mut self, memory: &mut Memory) -> Result<SystemTime, StoreError> {
        for _ in 0..MAX_STEPS {
            let now = self.clock.now();
            let circumstances = Circumstances {
                now,
                lifetimes: self.lifetimes,
                names: &self.names,
                next_known_for: memory.next_known_for(&self.publisher),
                spread: &memory.spread,
            };
            let advanced = match &memory.slots {
                None => Slots::new(&circumstances)?,
                Some(slots) => match slots.plan(&circumstances) {
                    Step::Wait(at) if !memory.is_lost => {
                        self.publisher.offer(slots.credential(), now);
                        self.loaded.set(true);
                        return Ok(at);
                    }
                    step => {
                        tracing::info!(?step, "renewing the serving certificate");
                        slots.take(step, &circumstances)?
                    }
                },
            };
            match self.store.write(&advanced, memory.stored.as_ref()).await {
                Ok(stored) => memory.remember(advanced, stored),
                // Another replica was faster: what it wrote counts.
                Err(StoreError::Conflict) => memory.adopt(self.store.read().await?)?,
                Err(error) => {
                    // What is there already is served all the same.
                    if let Some(slots) = &memory.slots {
                        self.publisher.offer(slots.credential(), now);
                    }
                    return Err(error);
                }
            }
        }
        Ok(self.clock.now() + STEPS_PAUSE)
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        self.metrics.certificate_errors.inc();
        tracing::error!(
            %error,
            "keeping the webhook's serving certificate failed and will be tried again; the \
             certificate in use stays"
        );
    }
}

impl Memory {
    /// Takes what is stored for the truth. A Secret that is gone or cannot be
    /// used does not count: what we hold is written in its place, so that what
    /// replicas serve stays covered by what is registered.
    fn adopt(&mut self, stored: Option<Secret>) -> Result<(), CredentialError> {
        let version = |secret: &Option<Secret>| {
            let secret = secret.as_ref()?;
            secret.metadata.resource_version.clone()
        };
        if self.stored.is_some() && version(&self.stored) == version(&stored) {
            return Ok(());
        }
        let slots = stored.as_ref().map(|secret| {
            Slots::from_data(|name| {
                let data = secret.data.as_ref()?;
                data.get(name).map(|bytes| bytes.0.as_slice())
            })
        });
        self.stored = stored;
        self.is_lost = !matches!(slots, Some(Ok(_)));
        if let Some(slots) = slots.transpose()? {
            self.note_next(&slots);
            self.slots = Some(slots);
        }
        Ok(())
    }

    fn remember(&mut self, slots: Slots, stored: Option<Secret>) {
        self.note_next(&slots);
        self.slots = Some(slots);
        self.stored = stored;
        self.is_lost = false;
    }

    fn note_next(&mut self, slots: &Slots) {
        self.next_published = slots.next_authority().map(|next| {
            let print = next.fingerprint();
            match self.next_published.take() {
                Some((known, since)) if known == print => (known, since),
                _ => (print, Instant::now()),
            }
        });
    }

    fn next_known_for(&self, publisher: &Publisher) -> Option<Duration> {
        let next = self.slots.as_ref()?.next_authority()?;
        let (_, published) = self.next_published.as_ref()?;
        publisher.known_for(next, *published)
    }
}
