//! What the API server is told of this webhook: for which pods to call it, how,
//! and what to do when it does not answer.
//!
//! The API server asks us about exactly the pods that injection would not skip.
//! So a webhook that is down costs only those, and nobody pays for a call that
//! changes nothing. Injection asks a row of places, the first answer counts
//! ([`INJECT_SOURCES`]); selectors cannot say "or", so each way to an answer is
//! a webhook of its own, and no two match the same pod:
//!
//! ```text
//!  entry                    the pod's        the pod's          the namespace's
//!                           labels say       annotations say    labels, annotations say
//!  pod-label-*              inject           (not asked)        (not asked)           Fail
//!  pod-annotation           nothing          inject             (not asked)           Fail
//!  namespace-label-*        nothing          nothing            inject                Fail
//!  namespace-annotation     nothing          nothing            nothing, inject       Fail
//!  default (if switched on) nothing          nothing            nothing, nothing      Ignore
//!  self-test                the test's pod, in Bulkhead's own namespace               Fail
//! ```
//!
//! "Inject" includes a value that nobody understands: such a pod must reach us,
//! to be refused with a message. Labels of pods and namespaces are read by
//! selectors. Annotations of pods are read by match conditions (CEL, Kubernetes
//! 1.30), which also leave out pods that no sidecar could serve. Annotations of
//! namespaces are seen by neither, so those namespaces are listed by name.
//!
//! Everything here is a pure function of [`Inputs`], the same in every replica.

use std::collections::BTreeMap;

use bulkhead_core::annotation::{INJECT_SOURCES, Place, parse_inject};
use bulkhead_inject::expression::can_be_served;
use bulkhead_inject::{Namespace, SYSTEM_NAMESPACES};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations,
    ServiceReference, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use self::selectors::{
    annotations_say_inject, annotations_say_nothing, label_exists, labels_say_inject,
    labels_say_nothing, name_in, name_not_in,
};
use crate::self_test;

pub(crate) mod ca_bundle;
pub(crate) mod keeper;
mod selectors;
#[cfg(test)]
mod tests;

/// The configuration's name where nobody chose another.
pub const DEFAULT_NAME: &str = "bulkhead-injector";
/// The path that the API server posts reviews to.
pub const INJECT_PATH: &str = "/inject";
/// The port of the Service, which leads to the container's own.
const SERVICE_PORT: i32 = 443;
/// The entry of the self-test, and what the name of its Service ends with.
pub(crate) const SELF_TEST: &str = "self-test";

/// How long the API server waits for an answer before the failure policy
/// counts. Every pod that opted in waits this long when the webhook's address
/// swallows packets, so it is half of Kubernetes' default; our slowest honest
/// answer, for a namespace that must be read first, takes 2 s.
pub const TIMEOUT_SECONDS: i32 = 5;

/// The label that the API server puts on every namespace: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Where the API server finds us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A Service in the cluster.
    Service { namespace: String, name: String },
    /// `https://host:port`, for a webhook that runs elsewhere.
    Url(String),
}

impl Target {
    /// Where the API server finds replicas that may not be ready yet.
    pub(crate) fn of_self_test(&self) -> Self {
        match self {
            Self::Service { namespace, name } => Self::Service {
                namespace: namespace.clone(),
                name: format!("{name}-{SELF_TEST}"),
            },
            Self::Url(url) => Self::Url(url.clone()),
        }
    }
}

/// What the annotations of a namespace without a deciding label say. Selectors
/// do not see it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Inject, or something that nobody understands.
    In,
    /// Do not inject.
    Out,
}

/// The standing of a namespace, where its annotations decide.
pub fn standing(namespace: &Namespace) -> Option<Standing> {
    let labels = names(Place::NamespaceLabel);
    if labels
        .iter()
        .any(|name| namespace.labels.contains_key(*name))
    {
        return None;
    }
    names(Place::NamespaceAnnotation).iter().find_map(|name| {
        let value = namespace.annotations.get(*name)?;
        Some(match parse_inject(name, value) {
            Ok(false) => Standing::Out,
            Ok(true) | Err(_) => Standing::In,
        })
    })
}

/// All that a configuration depends on.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub name: String,
    pub target: Target,
    /// The CAs by which the API server verifies us, in PEM.
    pub ca_bundle: String,
    /// Bulkhead's own namespace.
    pub system_namespace: String,
    /// Whether pods are injected about which nobody says anything.
    pub inject_by_default: bool,
    /// The namespaces whose annotations decide.
    pub standings: BTreeMap<String, Standing>,
    /// Whether there is an entry for the pods of the self-test.
    pub self_test: bool,
    /// What takes the configuration along when it is deleted itself.
    pub owners: Vec<OwnerReference>,
    /// The pods that are left out because injection is switched off, where the
    /// API server does not see to it by itself.
    pub stop: Option<MatchCondition>,
}

/// The configuration, with every field that the API server would otherwise
/// fill in, so that what is read back can be compared with it.
pub fn configuration(inputs: &Inputs) -> MutatingWebhookConfiguration {
    let labels = [
        ("app.kubernetes.io/name", "bulkhead-webhook"),
        ("app.kubernetes.io/part-of", "bulkhead"),
        ("app.kubernetes.io/managed-by", "bulkhead-webhook"),
    ];
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(inputs.name.clone()),
            labels: Some(
                labels
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            owner_references: Some(inputs.owners.clone()).filter(|owners| !owners.is_empty()),
            ..ObjectMeta::default()
        },
        webhooks: Some(
            entries(inputs)
                .into_iter()
                .map(|entry| entry.webhook(inputs))
                .collect(),
        ),
    }
}

/// Whether what the API server has is not what it should have. Fields that
/// other people's tools add beside ours are theirs.
pub fn differs(
    existing: &MutatingWebhookConfiguration,
    desired: &MutatingWebhookConfiguration,
) -> bool {
    let by_name = |configuration: &MutatingWebhookConfiguration| -> BTreeMap<_, _> {
        let webhooks = configuration.webhooks.clone().unwrap_or_default();
        webhooks
            .into_iter()
            .map(|webhook| (webhook.name.clone(), webhook))
            .collect()
    };
    let owners = |configuration: &MutatingWebhookConfiguration| {
        let owners = configuration.metadata.owner_references.clone();
        owners.unwrap_or_default()
    };
    let has_owners = owners(existing);
    let has = existing.metadata.labels.clone().unwrap_or_default();
    let wants = desired.metadata.labels.clone().unwrap_or_default();
    by_name(existing) != by_name(desired)
        || owners(desired)
            .iter()
            .any(|owner| !has_owners.contains(owner))
        || wants
            .iter()
            .any(|(name, value)| has.get(name) != Some(value))
}

/// Takes the configuration away, so that the API server asks nobody any more.
/// Running replicas would put it back; scale them to none first.
pub async fn unregister(name: &str, client: kube::Client) -> kube::Result<()> {
    let api: kube::Api<MutatingWebhookConfiguration> = kube::Api::all(client);
    match api.delete(name, &kube::api::DeleteParams::default()).await {
        Ok(_) => {
            tracing::info!(configuration = name, "unregistered from the API server");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            tracing::info!(configuration = name, "there was no registration");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What the API server does with a pod that we do not answer for.
#[derive(Clone, Copy)]
enum Unanswered {
    /// Somebody asked for the sidecar: better no pod than one in plaintext.
    Fail,
    /// Nobody asked: better a pod without a sidecar than none.
    Ignore,
}

/// One webhook of the configuration.
struct Entry {
    name: String,
    namespaces: LabelSelector,
    pods: LabelSelector,
    conditions: Vec<(&'static str, String)>,
    unanswered: Unanswered,
    target: Target,
}

fn entries(inputs: &Inputs) -> Vec<Entry> {
    // A cluster must be able to heal itself while every pod of ours is dead, so
    // neither Kubernetes' own namespaces nor ours ever depend on us.
    let namespaces = || {
        let own = inputs.system_namespace.as_str();
        name_not_in(SYSTEM_NAMESPACES.into_iter().chain([own]))
    };
    let listed = |wanted: Option<Standing>| {
        inputs
            .standings
            .iter()
            .filter(move |(_, standing)| wanted.is_none_or(|wanted| wanted == **standing))
            .map(|(name, _)| name.as_str())
    };
    let pod_labels = names(Place::PodLabel);
    let namespace_labels = names(Place::NamespaceLabel);
    let silent_pods = || labels_say_nothing(pod_labels);
    let silent_annotations = || {
        let expression = annotations_say_nothing(names(Place::PodAnnotation));
        vec![("annotations-say-nothing", expression)]
    };

    let mut entries = Vec::new();
    for (way, name) in pod_labels.iter().enumerate() {
        entries.push(Entry {
            name: format!("pod-label-{}", slug(name)),
            namespaces: selector([namespaces()]),
            pods: selector(labels_say_inject(pod_labels, way)),
            conditions: Vec::new(),
            unanswered: Unanswered::Fail,
            target: inputs.target.clone(),
        });
    }
    entries.push(Entry {
        name: "pod-annotation".to_owned(),
        namespaces: selector([namespaces()]),
        pods: selector(silent_pods()),
        conditions: vec![(
            "annotations-say-inject",
            annotations_say_inject(names(Place::PodAnnotation)),
        )],
        unanswered: Unanswered::Fail,
        target: inputs.target.clone(),
    });
    for (way, name) in namespace_labels.iter().enumerate() {
        let labelled = labels_say_inject(namespace_labels, way);
        entries.push(Entry {
            name: format!("namespace-label-{}", slug(name)),
            namespaces: selector([namespaces()].into_iter().chain(labelled)),
            pods: selector(silent_pods()),
            conditions: silent_annotations(),
            unanswered: Unanswered::Fail,
            target: inputs.target.clone(),
        });
    }
    let silent_labels = labels_say_nothing(namespace_labels);
    if listed(Some(Standing::In)).next().is_some() {
        let named = [namespaces(), name_in(listed(Some(Standing::In)))];
        entries.push(Entry {
            name: "namespace-annotation".to_owned(),
            namespaces: selector(named.into_iter().chain(silent_labels.clone())),
            pods: selector(silent_pods()),
            conditions: silent_annotations(),
            unanswered: Unanswered::Fail,
            target: inputs.target.clone(),
        });
    }
    if inputs.inject_by_default {
        let decided = listed(None).next().map(|_| name_not_in(listed(None)));
        let unnamed = [namespaces()].into_iter().chain(decided);
        entries.push(Entry {
            name: "default".to_owned(),
            namespaces: selector(unnamed.chain(silent_labels)),
            pods: selector(silent_pods()),
            conditions: silent_annotations(),
            unanswered: Unanswered::Ignore,
            target: inputs.target.clone(),
        });
    }
    if inputs.self_test {
        entries.push(Entry {
            name: SELF_TEST.to_owned(),
            namespaces: selector([name_in([inputs.system_namespace.as_str()])]),
            pods: selector([label_exists(self_test::LABEL)]),
            conditions: Vec::new(),
            unanswered: Unanswered::Fail,
            target: inputs.target.of_self_test(),
        });
    }
    entries
}

impl Entry {
    fn webhook(self, inputs: &Inputs) -> MutatingWebhook {
        let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
        // Pods that a sidecar cannot serve, whatever anybody says of them, stay
        // with the API server.
        let conditions = can_be_served().into_iter().chain(self.conditions);
        let mut conditions = selectors::match_conditions(conditions);
        conditions.extend(inputs.stop.clone());
        MutatingWebhook {
            name: format!("{}.inject.bulkhead.io", self.name),
            admission_review_versions: vec!["v1".to_owned()],
            client_config: client_config(self.target, inputs),
            failure_policy: Some(
                match self.unanswered {
                    Unanswered::Fail => "Fail",
                    Unanswered::Ignore => "Ignore",
                }
                .to_owned(),
            ),
            match_conditions: Some(conditions),
            match_policy: Some("Equivalent".to_owned()),
            namespace_selector: Some(self.namespaces),
            object_selector: Some(self.pods),
            // Another webhook may add a container after us, whose probes and
            // ports we have not seen; injecting twice is injecting once.
            reinvocation_policy: Some("IfNeeded".to_owned()),
            rules: Some(vec![RuleWithOperations {
                api_groups: list(&[""]),
                api_versions: list(&["v1"]),
                operations: list(&["CREATE"]),
                resources: list(&["pods"]),
                scope: Some("Namespaced".to_owned()),
            }]),
            // Events, which a dry run does not get.
            side_effects: "NoneOnDryRun".to_owned(),
            timeout_seconds: Some(TIMEOUT_SECONDS),
        }
    }
}

fn client_config(target: Target, inputs: &Inputs) -> WebhookClientConfig {
    let mut config = WebhookClientConfig {
        ca_bundle: Some(ByteString(inputs.ca_bundle.clone().into_bytes())),
        ..WebhookClientConfig::default()
    };
    match target {
        Target::Service { namespace, name } => {
            config.service = Some(ServiceReference {
                namespace,
                name,
                path: Some(INJECT_PATH.to_owned()),
                port: Some(SERVICE_PORT),
            });
        }
        Target::Url(url) => {
            config.url = Some(format!("{}{INJECT_PATH}", url.trim_end_matches('/')));
        }
    }
    config
}

/// The names that injection reads in a place, the deciding one first.
fn names(place: Place) -> &'static [&'static str] {
    INJECT_SOURCES
        .iter()
        .find(|source| source.place == place)
        .map_or(&[], |source| source.names)
}

/// A label's name as a part of a webhook's name, which is a DNS name.
fn slug(label: &str) -> String {
    label.replace(['.', '/'], "-")
}

fn selector(
    requirements: impl IntoIterator<
        Item = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement,
    >,
) -> LabelSelector {
    LabelSelector {
        match_expressions: Some(requirements.into_iter().collect()),
        match_labels: None,
    }
}
