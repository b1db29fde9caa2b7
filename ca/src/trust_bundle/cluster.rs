//! The trust bundle as a ClusterTrustBundle, which kubelet projects into any
//! pod, for clusters whose API server has that kind.
//!
//! The kind is beta and off by default: whether it is there is asked at run
//! time, again and again, because an API server may be restarted with it.
//!
//! The kind has no place for the bundle's sequence, which an annotation says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_runtime::drain;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::contents::{Contents, Verdict};
use super::{DEADLINE, FIELD_MANAGER, OF_NOTHING, labels};
use crate::metrics::Metrics;

/// The signer that the bundle is linked to: whoever asks for "all bundles of
/// this signer" gets it.
pub const SIGNER: &str = "ca.bulkhead.io/x509-svid";
/// The object's name, which must begin with the signer's.
pub const NAME: &str = "ca.bulkhead.io:x509-svid:bulkhead";
/// Says whose roots they are.
const TRUST_DOMAIN_LABEL: &str = "ca.bulkhead.io/trust-domain";
/// Says which version of the bundle it is.
pub const SEQUENCE_ANNOTATION: &str = "ca.bulkhead.io/trust-bundle-sequence";

const GROUP: &str = "certificates.k8s.io";
/// The versions that we know, the best first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const KIND: &str = "ClusterTrustBundle";
/// How often the object is looked at, and, where there is no such kind, whether
/// there is one now.
const LOOK: Duration = Duration::from_secs(30);
/// How soon after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps the object right, as one task.
pub struct ClusterPublisher {
    pub client: Client,
    pub owner: Owner,
    pub trust_domain: TrustDomain,
    /// The SPIFFE bundle document, and every change of it.
    pub document: watch::Receiver<Arc<str>>,
    /// When the last look at the store began that succeeded.
    pub store_seen: watch::Receiver<Instant>,
    /// Whether another CA is in the store, whose replicas publish.
    pub replaced: watch::Receiver<bool>,
    pub metrics: Metrics,
}

/// What one look leaves for the next.
#[derive(Default)]
struct Seen {
    /// The kind as it is served, where it is.
    served: Option<ApiResource>,
    /// The version of an object that says that it is newer than what this replica
    /// knows, and when that was noticed.
    newer: Option<(Option<String>, Instant)>,
}

/// When a look begins, and when the last one at the store did.
#[derive(Clone, Copy)]
struct Now {
    began: Instant,
    store_seen: Instant,
}

/// How a look ended.
enum Looked {
    /// There is nothing to do before something changes.
    Settled,
    /// Somebody wrote in between.
    Overtaken,
}

impl ClusterPublisher {
    /// Keeps it until the drain starts.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        let mut has_failed = false;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = self.document.changed() => {}
                Ok(()) = self.store_seen.changed(), if seen.newer.is_some() => {}
                Ok(()) = self.replaced.changed() => {}
                () = drain.started() => return,
            }
            if *self.replaced.borrow_and_update() {
                continue;
            }
            // Asked for first: what a look showed is in the bundle when it is said that
            // there was one.
            let store_seen = *self.store_seen.borrow_and_update();
            let Some(contents) = Contents::of(&self.document.borrow_and_update()) else {
                continue;
            };
            let now = Now {
                began: Instant::now(),
                store_seen,
            };
            let outcome = match timeout(DEADLINE, self.look(&contents, &mut seen, now)).await {
                Ok(Ok(Looked::Settled)) => Ok(()),
                Ok(Ok(Looked::Overtaken)) => {
                    looks.reset_after(AGAIN);
                    Ok(())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {DEADLINE:?}")),
            };
            if let Err(error) = &outcome {
                self.metrics.trust_bundle_failures.inc();
                looks.reset_after(AGAIN);
                // The kind may be gone, or be served in another version.
                seen.served = None;
                if !has_failed {
                    tracing::error!(
                        error,
                        name = NAME,
                        "writing the ClusterTrustBundle failed and will be tried again; check \
                         that the ServiceAccount may get, create and patch it, and attest for \
                         the signer {SIGNER}"
                    );
                }
            }
            has_failed = outcome.is_err();
        }
    }

    async fn look(&self, contents: &Contents, seen: &mut Seen, now: Now) -> kube::Result<Looked> {
        if seen.served.is_none() {
            seen.served = find(&self.client, KIND, &VERSIONS).await?;
        }
        let Some(resource) = &seen.served else {
            return Ok(Looked::Settled);
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let found = api.get_opt(NAME).await?;
        let version = found.as_ref().and_then(DynamicObject::resource_version);
        let verdict = found.map_or(Verdict::Wrong, |found| self.judge(&found, contents));
        let before = seen.newer.take();
        match verdict {
            Verdict::Right => return Ok(Looked::Settled),
            Verdict::Wrong => {}
            Verdict::Newer => {
                let before = before.filter(|(before, _)| *before == version);
                let since = before.map_or_else(Instant::now, |(_, since)| since);
                if now.store_seen <= since {
                    seen.newer = Some((version, since));
                    return Ok(Looked::Settled);
                }
            }
        }
        let owners = match self.owner.standing_since(now.began.into()).await? {
            Standing::Owned(owners) => owners,
            Standing::Uninstalling => return Ok(Looked::Settled),
        };
        let mut object = DynamicObject::new(NAME, resource).data(json!({
            "spec": { "signerName": SIGNER, "trustBundle": *contents.roots },
        }));
        object.metadata.labels = Some(self.labels());
        object.metadata.annotations = Some(annotations(contents));
        // Only if nobody wrote since it was looked at.
        object.metadata.resource_version = version.or_else(|| Some(OF_NOTHING.to_owned()));
        object.metadata.owner_references = Some(owners).filter(|owners| !owners.is_empty());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(NAME, &parameters, &Patch::Apply(&object)).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                return Ok(Looked::Overtaken);
            }
            applied => applied?,
        };
        self.metrics.trust_bundle_writes.inc();
        tracing::info!(name = NAME, "wrote the trust bundle for the whole cluster");
        Ok(Looked::Settled)
    }

    fn judge(&self, found: &DynamicObject, contents: &Contents) -> Verdict {
        let (labels, notes) = (found.labels(), found.annotations());
        let sequence = notes.get(SEQUENCE_ANNOTATION);
        let sequence = sequence.and_then(|sequence| sequence.parse().ok());
        let has_all = |has: &BTreeMap<String, String>, all: BTreeMap<String, String>| {
            all.iter().all(|(name, value)| has.get(name) == Some(value))
        };
        let is_right = found.data["spec"]["trustBundle"] == *contents.roots
            && self.owner.is_named_by(&found.metadata)
            && has_all(notes, annotations(contents))
            && has_all(labels, self.labels());
        match is_right {
            true => Verdict::Right,
            false => contents.beside(sequence),
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = labels();
        let trust_domain = self.trust_domain.as_str();
        // Names of trust domains may be longer than values of labels.
        if trust_domain.len() <= 63 {
            labels.insert(TRUST_DOMAIN_LABEL.to_owned(), trust_domain.to_owned());
        }
        labels
    }
}

fn annotations(contents: &Contents) -> BTreeMap<String, String> {
    let sequence = contents.sequence.to_string();
    BTreeMap::from([(SEQUENCE_ANNOTATION.to_owned(), sequence)])
}

/// The resource of a kind of Kubernetes' certificates, in the first of these
/// versions that is served.
pub(crate) async fn find(
    client: &Client,
    kind: &str,
    versions: &[&str],
) -> kube::Result<Option<ApiResource>> {
    for version in versions {
        let listed = client
            .list_api_group_resources(&format!("{GROUP}/{version}"))
            .await;
        let resources = match listed {
            Ok(listed) => listed.resources,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let found = resources.iter().find(|resource| resource.kind == kind);
        if let Some(found) = found {
            let kind = GroupVersionKind::gvk(GROUP, version, kind);
            return Ok(Some(ApiResource::from_gvk_with_plural(&kind, &found.name)));
        }
    }
    Ok(None)
}
