//! The trust bundle as a ClusterTrustBundle, which kubelet projects into any
//! pod, for clusters whose API server has that kind.
//!
//! The kind is beta and off by default: whether it is there is asked at run
//! time, again and again, because an API server may be restarted with it.

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

use super::contents::Contents;
use super::{DEADLINE, FIELD_MANAGER, labels};
use crate::metrics::Metrics;

/// The signer that the bundle is linked to: whoever asks for "all bundles of
/// this signer" gets it.
pub const SIGNER: &str = "ca.bulkhead.io/x509-svid";
/// The object's name, which must begin with the signer's.
pub const NAME: &str = "ca.bulkhead.io:x509-svid:bulkhead";
/// Says whose roots they are.
const TRUST_DOMAIN_LABEL: &str = "ca.bulkhead.io/trust-domain";

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
    pub metrics: Metrics,
}

impl ClusterPublisher {
    /// Keeps it until the drain starts.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut served = None;
        let mut has_failed = false;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = self.document.changed() => {}
                () = drain.started() => return,
            }
            let Some(contents) = Contents::of(&self.document.borrow_and_update()) else {
                continue;
            };
            let began = Instant::now();
            let outcome = match timeout(DEADLINE, self.look(&contents, &mut served, began)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {DEADLINE:?}")),
            };
            if let Err(error) = &outcome {
                self.metrics.trust_bundle_failures.inc();
                looks.reset_after(AGAIN);
                // The kind may be gone, or be served in another version.
                served = None;
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

    async fn look(
        &self,
        contents: &Contents,
        served: &mut Option<ApiResource>,
        began: Instant,
    ) -> kube::Result<()> {
        if served.is_none() {
            *served = find(&self.client, KIND, &VERSIONS).await?;
        }
        let Some(resource) = served else {
            return Ok(());
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let found = api.get_opt(NAME).await?;
        if found.is_some_and(|found| self.is_right(&found, contents)) {
            return Ok(());
        }
        let owners = match self.owner.standing_since(began.into()).await? {
            Standing::Owned(owners) => owners,
            Standing::Uninstalling => return Ok(()),
        };
        let mut object = DynamicObject::new(NAME, resource).data(json!({
            "spec": { "signerName": SIGNER, "trustBundle": *contents.roots },
        }));
        object.metadata.labels = Some(self.labels());
        object.metadata.owner_references = Some(owners).filter(|owners| !owners.is_empty());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(NAME, &parameters, &Patch::Apply(&object)).await?;
        self.metrics.trust_bundle_writes.inc();
        tracing::info!(name = NAME, "wrote the trust bundle for the whole cluster");
        Ok(())
    }

    fn is_right(&self, found: &DynamicObject, contents: &Contents) -> bool {
        let has = found.labels();
        found.data["spec"]["trustBundle"] == *contents.roots
            && self.owner.is_named_by(&found.metadata)
            && self
                .labels()
                .iter()
                .all(|(name, value)| has.get(name) == Some(value))
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
