//! Hears of changes of the Secret as they happen, so that every replica signs with
//! what is stored within moments. Nothing depends on it: replicas look at the
//! Secret all the same, whatever they heard.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::Mutex;

/// Only that something changed is watched, and never the keys: these are read
/// when they are needed, and wiped.
type Events = Pin<Box<dyn Stream<Item = watcher::Result<Event<PartialObjectMeta<Secret>>>> + Send>>;

/// The changes of one Secret.
pub(super) struct Changes(Mutex<Followed>);

struct Followed {
    events: Events,
    /// Whether the last that was heard was a failure, so that it is said once.
    has_failed: bool,
}

impl Changes {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, namespace);
        let ours = watcher::Config::default().fields(&format!("metadata.name={name}"));
        Self(Mutex::new(Followed {
            events: watcher(secrets, ours).default_backoff().boxed(),
            has_failed: false,
        }))
    }

    /// Waits for the next change, or for a list after which one may have been
    /// missed.
    pub(super) async fn next(&self) {
        let mut followed = self.0.lock().await;
        loop {
            match followed.events.next().await {
                Some(Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone)) => {
                    followed.has_failed = false;
                    return;
                }
                Some(Ok(Event::Init | Event::InitApply(_))) => {}
                Some(Err(error)) => {
                    if !std::mem::replace(&mut followed.has_failed, true) {
                        tracing::warn!(
                            %error,
                            "the watch of the CA's Secret was interrupted and will be resumed; \
                             until then this replica follows a change within seconds; check that \
                             the ServiceAccount may list and watch it"
                        );
                    }
                }
                None => std::future::pending().await,
            }
        }
    }
}
