//! Which pods a command is about: the whole mesh, a namespace, or the pods of
//! one workload.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use bulkhead_crds::emergency::{Emergency, PodSelector};
use clap::Args;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;

use crate::cluster::Cluster;

/// Which pods.
#[derive(Args, Clone, Debug)]
pub(crate) struct ScopeArgs {
    /// Only this namespace; the whole mesh where none is named
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Only the pods of this workload, such as deployment/checkout
    #[arg(long, value_name = "KIND/NAME", requires = "namespace")]
    pub(crate) workload: Option<WorkloadName>,
}

/// A workload by its kind and name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WorkloadName {
    pub(crate) kind: WorkloadKind,
    pub(crate) name: String,
}

/// Kinds whose pods can be told from others by labels.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
}

impl WorkloadKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
        }
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

impl FromStr for WorkloadName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = text
            .split_once('/')
            .ok_or("write kind and name, such as deployment/checkout")?;
        let kind = match kind.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => WorkloadKind::Deployment,
            "statefulset" | "statefulsets" | "sts" => WorkloadKind::StatefulSet,
            "daemonset" | "daemonsets" | "ds" => WorkloadKind::DaemonSet,
            _ => return Err("the kind is deployment, statefulset or daemonset".to_owned()),
        };
        Ok(Self {
            kind,
            name: name.to_owned(),
        })
    }
}

/// A scope with what the cluster says of it.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    system_namespace: String,
    namespace: Option<String>,
    workload: Option<WorkloadName>,
    selector: Option<PodSelector>,
}

impl ScopeArgs {
    /// Looks up the labels of the workload's pods, where one is named.
    pub(crate) async fn resolve(&self, cluster: &Cluster) -> anyhow::Result<Scope> {
        if self.namespace.as_ref() == Some(&cluster.system_namespace) {
            bail!(
                "{0} is Bulkhead's own namespace, and a switch in it is for the whole mesh; if \
                 that is meant, leave --namespace out",
                cluster.system_namespace
            );
        }
        let selector = match (&self.namespace, &self.workload) {
            (Some(namespace), Some(workload)) => {
                Some(selector(cluster, namespace, workload).await?)
            }
            _ => None,
        };
        Ok(Scope {
            system_namespace: cluster.system_namespace.clone(),
            namespace: self.namespace.clone(),
            workload: self.workload.clone(),
            selector,
        })
    }
}

impl Scope {
    /// The whole mesh.
    pub(crate) fn everything(cluster: &Cluster) -> Self {
        Self {
            system_namespace: cluster.system_namespace.clone(),
            namespace: None,
            workload: None,
            selector: None,
        }
    }

    /// Where a switch for this scope is stored.
    pub(crate) fn switch_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.system_namespace)
    }

    /// The namespace, where the scope is not the whole mesh.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(crate) fn selector(&self) -> Option<&PodSelector> {
        self.selector.as_ref()
    }

    pub(crate) fn workload(&self) -> Option<&WorkloadName> {
        self.workload.as_ref()
    }

    /// The options that name it again, with a space before them.
    pub(crate) fn options(&self) -> String {
        let mut options = String::new();
        if let Some(namespace) = &self.namespace {
            options.push_str(&format!(" --namespace {namespace}"));
        }
        if let Some(workload) = &self.workload {
            options.push_str(&format!(" --workload {workload}"));
        }
        options
    }

    /// Whether a switch is one that the way back in this scope takes away: one
    /// that is for nothing beyond it.
    pub(crate) fn contains<K: Emergency>(&self, switch: &K) -> bool {
        let is_in_namespace = self
            .namespace
            .as_ref()
            .is_none_or(|namespace| switch.meta().namespace.as_ref() == Some(namespace));
        let is_of_workload = self
            .selector
            .as_ref()
            .is_none_or(|selector| switch.terms().selector.as_ref() == Some(selector));
        is_in_namespace && is_of_workload
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.workload) {
            (Some(namespace), Some(workload)) => write!(f, "{workload} in namespace {namespace}"),
            (Some(namespace), None) => write!(f, "namespace {namespace}"),
            (None, _) => f.write_str("the whole mesh"),
        }
    }
}

/// The labels by which a workload finds its pods.
async fn selector(
    cluster: &Cluster,
    namespace: &str,
    workload: &WorkloadName,
) -> anyhow::Result<PodSelector> {
    let name = &workload.name;
    let client = cluster.client.clone();
    let selector: kube::Result<Option<LabelSelector>> = match workload.kind {
        WorkloadKind::Deployment => Api::<Deployment>::namespaced(client, namespace)
            .get(name)
            .await
            .map(|found| found.spec.map(|spec| spec.selector)),
        WorkloadKind::StatefulSet => Api::<StatefulSet>::namespaced(client, namespace)
            .get(name)
            .await
            .map(|found| found.spec.map(|spec| spec.selector)),
        WorkloadKind::DaemonSet => Api::<DaemonSet>::namespaced(client, namespace)
            .get(name)
            .await
            .map(|found| found.spec.map(|spec| spec.selector)),
    };
    let selector = selector.with_context(|| {
        format!("looking up {workload} in namespace {namespace} failed, whose pods are meant")
    })?;
    let match_labels = selector
        .and_then(|selector| selector.match_labels)
        .unwrap_or_default();
    if match_labels.is_empty() {
        bail!(
            "{workload} in namespace {namespace} does not find its pods by labels alone, so no \
             switch can be for them only; turn it for the namespace instead"
        );
    }
    Ok(PodSelector { match_labels })
}

/// A switch's scope in the words of [`Scope`].
pub(crate) fn describe<K: Emergency>(switch: &K, system_namespace: &str) -> String {
    let namespace = switch.meta().namespace.as_deref().unwrap_or_default();
    let terms = switch.terms();
    match (&terms.workload, &terms.selector) {
        _ if namespace == system_namespace && terms.selector.is_none() => {
            "the whole mesh".to_owned()
        }
        (Some(workload), _) => format!("{workload} in namespace {namespace}"),
        (None, Some(_)) => format!("some pods of namespace {namespace}"),
        (None, None) => format!("namespace {namespace}"),
    }
}
