//! Makes, finds and removes switches.

use std::fmt::Debug;

use anyhow::{anyhow, ensure};
use bulkhead_crds::emergency::{Emergency, Level, Terms, time_limit};
use bulkhead_inject::SYSTEM_NAMESPACES;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use kube::core::Status;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::scope::{self, Scope};
use super::terms::{Output, Request};
use crate::cluster::Cluster;

/// What a command needs of a kind of switch.
pub(crate) trait Switch:
    Emergency + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K: Emergency + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static> Switch
    for K
{
}

/// A switch that was turned.
#[derive(Debug)]
pub(crate) struct Turned<K> {
    pub(crate) switch: K,
    pub(crate) limit: Limit,
}

/// Who ends it.
#[derive(Debug)]
pub(crate) enum Limit {
    /// Nobody: it has no time limit.
    None,
    /// Kubernetes' own controllers.
    Job,
    /// Bulkhead's programs, if they run: the Job could not be made, for this
    /// reason.
    Ours(kube::Error),
}

/// Stores the switch, and the Job that is its time limit where it has one.
pub(crate) async fn turn<K: Switch>(
    cluster: &Cluster,
    request: &Request,
) -> anyhow::Result<Turned<K>> {
    let namespace = request.scope.switch_namespace();
    ensure!(
        !SYSTEM_NAMESPACES.contains(&namespace),
        "pods in {namespace} never get a sidecar, so there is nothing to switch there"
    );
    let name = name(K::LEVEL);
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), namespace);
    let (by, job) = futures::join!(who_am_i(cluster), async {
        let until = request.terms.until.as_ref()?;
        let job = time_limit::job::<K>(namespace, &name, until, request.now);
        Some(jobs.create(&PostParams::default(), &job).await)
    });
    let mut switch = K::with_terms(
        &name,
        Terms {
            by,
            ..request.terms.clone()
        },
    );
    let limit = match job {
        None => Limit::None,
        Some(Ok(job)) => {
            switch.meta_mut().owner_references = time_limit::owner(&job).map(|owner| vec![owner]);
            Limit::Job
        }
        // The emergency comes first; its end is said to be open.
        Some(Err(error)) => Limit::Ours(error),
    };
    let switches: Api<K> = Api::namespaced(cluster.client.clone(), namespace);
    match switches.create(&PostParams::default(), &switch).await {
        Ok(switch) => {
            publish(cluster, &switch, "TurnedOn").await;
            Ok(Turned { switch, limit })
        }
        Err(error) => {
            if matches!(limit, Limit::Job) {
                // It would go by itself at its time.
                let _ = jobs.delete(&name, &DeleteParams::background()).await;
            }
            Err(refused::<K>(error, namespace))
        }
    }
}

/// The switch as it would be stored, for `kubectl apply`.
pub(crate) fn manifest<K: Switch>(request: &Request, output: Output) -> anyhow::Result<String> {
    let mut switch = K::with_terms(&name(K::LEVEL), request.terms.clone());
    switch.meta_mut().namespace = Some(request.scope.switch_namespace().to_owned());
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(&switch)? + "\n"),
        Output::Yaml => Ok(serde_saphyr::to_string(&switch)?),
    }
}

/// The switches of a kind that are there in a scope.
pub(crate) async fn find<K: Switch>(cluster: &Cluster, scope: &Scope) -> anyhow::Result<Vec<K>> {
    let api: Api<K> = match scope.namespace() {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let found = api
        .list(&ListParams::default())
        .await
        .map_err(|error| refused::<K>(error, scope.switch_namespace()))?;
    let mut found = found.items;
    found.retain(|switch| scope.contains(switch));
    Ok(found)
}

/// Removes a switch, and the Job that was its time limit.
pub(crate) async fn remove<K: Switch>(cluster: &Cluster, switch: &K) -> anyhow::Result<()> {
    let namespace = switch.namespace().unwrap_or_default();
    let name = switch.name_any();
    let switches: Api<K> = Api::namespaced(cluster.client.clone(), &namespace);
    match switches.delete(&name, &DeleteParams::default()).await {
        Ok(_) => publish(cluster, switch, "TurnedBack").await,
        // Its time ended while we were at it.
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(refused::<K>(error, &namespace)),
    }
    for owner in switch.owner_references() {
        if owner.kind == "Job" {
            let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), &namespace);
            let background = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                ..DeleteParams::default()
            };
            // It goes by itself at its time, and nothing depends on it.
            let _ = jobs.delete(&owner.name, &background).await;
        }
    }
    Ok(())
}

/// An Event, for those who look at the switch or at its namespace. The switch
/// works without it.
async fn publish<K: Switch>(cluster: &Cluster, switch: &K, reason: &str) {
    let reporter = Reporter::from("bulkhead-cli");
    let note = format!(
        "{}: {}",
        scope::describe(switch, &cluster.system_namespace),
        switch.terms().reason
    );
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: command(K::LEVEL).to_owned(),
        secondary: None,
    };
    let recorder = Recorder::new(cluster.client.clone(), reporter);
    let _ = recorder.publish(&event, &switch.object_ref(&())).await;
}

/// Whom the API server takes us for; it writes this into the switch by itself
/// from Kubernetes 1.36 on, and refuses other names before.
async fn who_am_i(cluster: &Cluster) -> Option<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = SelfSubjectReview::default();
    let answer = reviews.create(&PostParams::default(), &review).await.ok()?;
    answer.status?.user_info?.username
}

/// A name that no other switch has: each is a decision of its own, with its own
/// author, reason and end.
fn name(level: Level) -> String {
    let letters =
        std::iter::repeat_with(|| char::from(b"bcdfghjkmnpqrstvwxz"[fastrand::usize(..19)]));
    let random: String = letters.take(6).collect();
    format!("{}-{random}", command(level))
}

/// The command that turns the switch of a level.
pub(crate) fn command(level: Level) -> &'static str {
    match level {
        Level::Injection => "off",
        Level::Bypass => "bypass",
        Level::Ejection => "eject",
    }
}

/// Whether an error says that somebody may not do something.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Forbidden>().is_some()
}

/// Somebody may not use a kind of switch.
#[derive(Debug, thiserror::Error)]
#[error(
    "you may not use {plural} in namespace {namespace}; whoever may is bound to the ClusterRole \
     bulkhead-emergency-{role} there. The API server says: {message}"
)]
struct Forbidden {
    plural: String,
    namespace: String,
    role: &'static str,
    message: String,
}

/// Why the API server did not do it, and what helps.
fn refused<K: Emergency>(error: kube::Error, namespace: &str) -> anyhow::Error {
    let kind = K::kind(&());
    let role = match K::LEVEL {
        Level::Injection => "injection",
        Level::Bypass => "bypass",
        Level::Ejection => "eject",
    };
    match &error {
        kube::Error::Api(status) if is_about_a_namespace(status) => anyhow!(
            "there is no namespace {namespace}; `kubectl get namespaces` lists those there are"
        ),
        kube::Error::Api(status) if status.code == 404 => anyhow!(
            "this cluster does not know the kind {kind}; Bulkhead's chart installs it, so either \
             this is another cluster or crds.install is off"
        ),
        kube::Error::Api(status) if status.code == 403 => anyhow::Error::new(Forbidden {
            plural: K::plural(&()).into_owned(),
            namespace: namespace.to_owned(),
            role,
            message: status.message.clone(),
        }),
        _ => anyhow::Error::new(error).context(format!(
            "asking the API server about {} in namespace {namespace} failed",
            K::plural(&())
        )),
    }
}

/// Whether it is the namespace that is not there.
fn is_about_a_namespace(status: &Status) -> bool {
    let details = status.details.as_ref();
    status.code == 404 && details.is_some_and(|details| details.kind == "namespaces")
}
