//! Kubernetes' objects with the fields that control reads, and no others.

use bulkhead_crds::emergency;
use bulkhead_crds::istio::peer_authentication::PeerAuthentication;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1 as discovery_v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Key, Kind, Object, ObjectError, Reading};

/// A namespace; its metadata is all there is.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = core_v1::Namespace)]
pub struct Namespace {
    #[serde(default)]
    pub metadata: ObjectMeta,
}

#[derive(Clone, Debug, Default, Deserialize, Resource, Serialize)]
#[resource(inherit = core_v1::Pod)]
pub struct Pod {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub containers: Option<Vec<Container>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_containers: Option<Vec<Container>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    pub service_account_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<std::collections::BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<PodOs>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PodOs {
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Container {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<ContainerPort>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub container_port: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = core_v1::Service)]
pub struct Service {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    pub ports: Option<Vec<ServicePort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: i32,
    pub protocol: Option<String>,
    pub app_protocol: Option<String>,
    pub target_port: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = discovery_v1::EndpointSlice)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub address_type: String,
    #[serde(default)]
    pub endpoints: Option<Vec<SliceEndpoint>>,
    #[serde(default)]
    pub ports: Option<Vec<SlicePort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    pub addresses: Vec<String>,
    pub conditions: Option<SliceConditions>,
    pub target_ref: Option<TargetRef>,
    pub zone: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SliceConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    pub name: Option<String>,
    pub port: Option<i32>,
    pub protocol: Option<String>,
}

/// A manifest of a kind that control reads.
pub trait Manifest: DeserializeOwned {
    const KIND: Kind;

    fn metadata(&self) -> &ObjectMeta;

    /// What is kept of it.
    fn keep(self, reading: &Reading) -> Result<Object, ObjectError>;

    /// Its name. Cluster-scoped objects have an empty namespace.
    fn key(&self) -> Result<Key, ObjectError> {
        let metadata = self.metadata();
        let name = metadata.name.as_deref().filter(|name| !name.is_empty());
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        Ok(Key::new(namespace, name.ok_or(ObjectError::Nameless)?))
    }
}

macro_rules! manifests {
    ($($type:ty: $kind:ident by $keep:expr;)*) => {
        $(impl Manifest for $type {
            const KIND: Kind = Kind::$kind;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn keep(self, reading: &Reading) -> Result<Object, ObjectError> {
                let keep: fn(Self, &Reading) -> Result<Object, ObjectError> = $keep;
                keep(self, reading)
            }
        })*
    };
}

manifests! {
    Namespace: Namespace by |manifest, reading| Ok(Object::Namespace(super::Namespace::read(manifest, reading)));
    Pod: Pod by |manifest, reading| Ok(Object::Pod(super::Pod::read(manifest, reading)));
    Service: Service by |manifest, _| Ok(Object::Service(super::Service::read(&manifest)));
    EndpointSlice: EndpointSlice by |manifest, _| Ok(Object::EndpointSlice(super::EndpointSlice::read(&manifest)));
    PeerAuthentication: PeerAuthentication by |manifest, _| Ok(Object::PeerAuthentication(manifest.try_into()?));
    emergency::Bypass: Bypass by |manifest, _| Ok(Object::Bypass(Box::new(manifest)));
}

/// Reads a manifest by its `apiVersion` and `kind`; nothing where it is of a
/// kind that control does not read.
///
/// An object of a namespaced kind that names no namespace is in `default`, as
/// `kubectl apply` has it.
pub fn read(manifest: Value, reading: &Reading) -> Result<Option<(Key, Object)>, ObjectError> {
    let text = |field: &str| manifest.get(field).and_then(Value::as_str).unwrap_or("");
    let group = text("apiVersion")
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    match (group, text("kind")) {
        ("", "Namespace") => one::<Namespace>(manifest, reading),
        ("", "Pod") => one::<Pod>(manifest, reading),
        ("", "Service") => one::<Service>(manifest, reading),
        ("discovery.k8s.io", "EndpointSlice") => one::<EndpointSlice>(manifest, reading),
        ("security.istio.io", "PeerAuthentication") => one::<PeerAuthentication>(manifest, reading),
        ("emergency.bulkhead.io", "Bypass") => one::<emergency::Bypass>(manifest, reading),
        _ => Ok(None),
    }
}

fn one<M: Manifest>(
    mut manifest: Value,
    reading: &Reading,
) -> Result<Option<(Key, Object)>, ObjectError> {
    if M::KIND != Kind::Namespace
        && let Some(Value::Object(metadata)) = manifest.get_mut("metadata")
    {
        metadata
            .entry("namespace")
            .or_insert_with(|| Value::String("default".to_owned()));
    }
    let manifest: M = serde_json::from_value(manifest)
        .map_err(|error| ObjectError::Malformed(M::KIND.as_str(), error))?;
    Ok(Some((manifest.key()?, manifest.keep(reading)?)))
}
