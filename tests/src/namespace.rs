//! A namespace of one test, and what the test puts in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// The shortest lifetime that the TokenRequest API grants.
const TOKEN_SECONDS: i64 = 600;

/// A namespace with a name that no other test has.
///
/// It is left where it is at the end of the test: the server and all that it
/// stored are gone a moment later.
pub struct Namespace {
    name: String,
    client: Client,
}

impl Namespace {
    /// Makes one with these labels and annotations, and waits until pods can be
    /// made in it: they need its `default` ServiceAccount, which a controller
    /// makes a moment after the namespace.
    pub async fn create(
        client: &Client,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let object = NamespaceObject {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(owned(labels)),
                annotations: Some(owned(annotations)),
                ..ObjectMeta::default()
            },
            ..NamespaceObject::default()
        };
        Api::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .expect("the administrator may create namespaces");
        let namespace = Self::existing(client, &name);
        let exists = |account: Option<&ServiceAccount>| account.is_some();
        await_condition(namespace.api(), "default", exists)
            .await
            .expect("the ServiceAccount controller makes `default`");
        namespace
    }

    /// One that is there, such as `kube-system`.
    pub fn existing(client: &Client, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            client: client.clone(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resources of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Stores a pod, and returns it as it was stored: after admission.
    pub async fn create_pod(&self, pod: &Pod) -> kube::Result<Pod> {
        self.api().create(&PostParams::default(), pod).await
    }

    /// Deletes a pod and waits until it is gone.
    pub async fn delete_pod(&self, pod: &Pod) {
        let (name, uid) = (pod.name_any(), pod.uid().expect("a stored pod has a UID"));
        self.api::<Pod>()
            .delete(&name, &DeleteParams::default())
            .await
            .expect("the administrator may delete pods");
        await_condition(self.api::<Pod>(), &name, conditions::is_deleted(&uid))
            .await
            .expect("a pod that was never scheduled goes at once");
    }

    /// Makes a ServiceAccount that may do what `rules` say, in every namespace.
    pub async fn create_service_account(&self, name: &str, rules: Vec<PolicyRule>) {
        let account = ServiceAccount {
            metadata: named(name),
            ..ServiceAccount::default()
        };
        self.api()
            .create(&PostParams::default(), &account)
            .await
            .expect("the administrator may create ServiceAccounts");
        if rules.is_empty() {
            return;
        }
        let role_name = format!("{}-{name}", self.name);
        let role = ClusterRole {
            metadata: named(&role_name),
            rules: Some(rules),
            ..ClusterRole::default()
        };
        let binding = ClusterRoleBinding {
            metadata: named(&role_name),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "ClusterRole".to_owned(),
                name: role_name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: name.to_owned(),
                namespace: Some(self.name.clone()),
                ..Subject::default()
            }]),
        };
        let parameters = PostParams::default();
        Api::all(self.client.clone())
            .create(&parameters, &role)
            .await
            .expect("the administrator may create roles");
        Api::all(self.client.clone())
            .create(&parameters, &binding)
            .await
            .expect("the administrator may bind roles");
    }

    /// A token of a ServiceAccount from the TokenRequest API: for `audience`
    /// (the API server itself where there is none), and bound to `pod`, so that
    /// it ends with it, as the tokens are that kubelet puts into pods.
    pub async fn token(&self, account: &str, audience: Option<&str>, pod: Option<&Pod>) -> String {
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.map(str::to_owned).into_iter().collect(),
                bound_object_ref: bound,
                expiration_seconds: Some(TOKEN_SECONDS),
            },
            ..TokenRequest::default()
        };
        self.api::<ServiceAccount>()
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .expect("the administrator may request tokens")
            .status
            .expect("a token request is answered with a status")
            .token
    }
}

/// A pod as a person would write it, with one container of `image`, labels and
/// annotations. `spec` is laid over its own.
pub fn pod(name: &str, spec: Value) -> Pod {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
    });
    if let (Value::Object(own), Value::Object(over)) = (&mut manifest["spec"], spec) {
        own.extend(over);
    }
    serde_json::from_value(manifest).expect("the test wrote a pod")
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

fn owned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}
