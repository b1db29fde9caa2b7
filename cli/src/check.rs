//! What `bulkhead check` looks at. Each look is on its own and tells what it
//! found, so that one that fails hides no other; and none needs anything of
//! Bulkhead to be alive.
//!
//! - [`finding`]: what a look tells.
//! - `control_plane`: kinds, programs, versions.
//! - `registration`: whether the API server would call the webhook.
//! - `trust`: the trust bundle in every namespace.
//! - `expiry`: what ends soon and is not renewed in time.
//! - `pods`: those without the sidecar that they should have.
//! - `self_test`: a pod, created as a dry run.

use std::time::{Duration, SystemTime};

use bulkhead_inject::SYSTEM_NAMESPACES;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use self::finding::Finding;
use crate::cluster::Cluster;
use crate::emergency::banner;

mod control_plane;
mod expiry;
pub mod finding;
mod pods;
mod registration;
mod self_test;
mod trust;

/// How long each look may take. An API server that is overloaded is slower
/// than one that is away.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// What a look is told.
pub(crate) struct Look<'a> {
    pub(crate) cluster: &'a Cluster,
    /// What expires within this is a problem already, where it is not renewed
    /// by itself before that. `None`: what is usual for each kind.
    pub(crate) expires_within: Option<Duration>,
    pub(crate) now: SystemTime,
    pub(crate) namespaces: Vec<Namespace>,
}

/// All that was found.
#[derive(Debug)]
pub struct Report {
    /// The API server's version; none where it does not answer.
    pub kubernetes: Option<String>,
    /// A line for each switch that is on.
    pub switches: Vec<String>,
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many looks found a problem.
    pub fn problems(&self) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.is_problem()).count()
    }
}

/// Looks at everything.
pub async fn check(cluster: &Cluster, expires_within: Option<Duration>, now: SystemTime) -> Report {
    let version = timeout(PATIENCE, cluster.client.apiserver_version()).await;
    let kubernetes = match version {
        Ok(Ok(version)) => version.git_version,
        Ok(Err(error)) => return without_api_server(&error),
        Err(_) => return without_api_server(&format!("no answer within {PATIENCE:?}")),
    };
    let (namespaces, mut findings) = match list(Api::<Namespace>::all(cluster.client.clone())).await
    {
        Ok(namespaces) => (namespaces, Vec::new()),
        Err(error) => (Vec::new(), vec![Finding::of_error("namespaces", &error)]),
    };
    let look = Look {
        cluster,
        expires_within,
        now,
        namespaces,
    };
    let looks = [
        ("kinds", boxed(control_plane::kinds(&look))),
        ("programs", boxed(control_plane::programs(&look))),
        ("registration", boxed(registration::registration(&look))),
        ("endpoints", boxed(registration::endpoints(&look))),
        ("trust-bundle", boxed(trust::bundles(&look))),
        ("authorities", boxed(expiry::authorities(&look))),
        ("certificates", boxed(expiry::webhook(&look))),
        ("certificates", boxed(expiry::shown(&look))),
        ("workloads", boxed(expiry::workloads(&look))),
        ("pods", boxed(pods::pods(&look))),
        ("self-test", boxed(self_test::self_test(&look))),
    ];
    let looks = looks.map(|(check, found)| async move {
        match timeout(PATIENCE, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => vec![Finding::of_error(check, &error)],
            Err(_) => vec![Finding::skipped(
                check,
                format!("the API server took longer than {PATIENCE:?}"),
            )],
        }
    });
    findings.extend(join_all(looks).await.into_iter().flatten());
    Report {
        kubernetes: Some(kubernetes),
        switches: banner::lines(cluster, now).await,
        findings,
    }
}

type Found<'a> = std::pin::Pin<Box<dyn Future<Output = kube::Result<Vec<Finding>>> + 'a>>;

fn boxed<'a>(look: impl Future<Output = kube::Result<Vec<Finding>>> + 'a) -> Found<'a> {
    Box::pin(look)
}

fn without_api_server(error: &dyn std::fmt::Display) -> Report {
    let finding = Finding::failed("api-server", format!("it does not answer: {error}"));
    Report {
        kubernetes: None,
        switches: Vec::new(),
        findings: vec![finding.remedy(
            "see whether `kubectl version` gets an answer; pods with sidecars keep working \
             meanwhile",
        )],
    }
}

/// All objects of an API, page by page.
async fn list<K>(api: Api<K>) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    list_by(api, ListParams::default()).await
}

async fn list_by<K>(api: Api<K>, parameters: ListParams) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut parameters = parameters.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(all),
        }
    }
}

impl Look<'_> {
    fn in_system_namespace<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.system_namespace)
    }

    /// The namespaces that may have pods of the mesh.
    fn served(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().filter(|namespace| {
            let is_going = namespace.metadata.deletion_timestamp.is_some();
            !is_going && !SYSTEM_NAMESPACES.contains(&namespace.name_any().as_str())
        })
    }
}

/// The first few of many names.
fn a_few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len() {
        0..=SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
    }
}
