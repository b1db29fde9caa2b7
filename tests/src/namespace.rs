//! A namespace of one test, and what the test puts in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bulkhead_inject::PROXY_CONTAINER;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{interval, timeout};

/// The shortest lifetime that the TokenRequest API grants.
const TOKEN_SECONDS: i64 = 600;
/// How long the authorizer may take to hear of a role and its binding.
const GRANTED_WITHIN: Duration = Duration::from_secs(60);
const GRANT_POLL: Duration = Duration::from_millis(20);

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
    /// made in it.
    pub async fn create(
        client: &Client,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Self::create_named(client, &name, labels, annotations).await
    }

    /// As [`Namespace::create`], where the name matters.
    pub async fn create_named(
        client: &Client,
        name: &str,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Self {
        let object = NamespaceObject {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
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
        let namespace = Self::existing(client, name);
        namespace.ready().await;
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

    /// Waits until pods can be made here: they need the `default`
    /// ServiceAccount, which a controller makes a moment after the namespace.
    pub async fn ready(&self) {
        let exists = |account: Option<&ServiceAccount>| account.is_some();
        await_condition(self.api(), "default", exists)
            .await
            .expect("the ServiceAccount controller makes `default`");
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

    /// Makes a ServiceAccount, which may do nothing yet.
    pub async fn create_service_account(&self, name: &str) {
        let account = ServiceAccount {
            metadata: named(name),
            ..ServiceAccount::default()
        };
        self.api()
            .create(&PostParams::default(), &account)
            .await
            .expect("the administrator may create ServiceAccounts");
    }

    /// Lets a ServiceAccount of this namespace do something in every namespace.
    pub async fn grant_everywhere(&self, account: &str, rules: Vec<PolicyRule>) {
        let name = format!("{}-{account}", self.name);
        let role = ClusterRole {
            metadata: named(&name),
            rules: Some(rules),
            ..ClusterRole::default()
        };
        let binding = ClusterRoleBinding {
            metadata: named(&name),
            role_ref: role_ref("ClusterRole", &name),
            subjects: Some(vec![self.subject(account)]),
        };
        let parameters = PostParams::default();
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let may_grant = "the administrator may grant";
        roles.create(&parameters, &role).await.expect(may_grant);
        bindings
            .create(&parameters, &binding)
            .await
            .expect(may_grant);
        self.is_granted(account, None, role.rules).await;
    }

    /// Lets a ServiceAccount of this namespace do something in it.
    pub async fn grant_here(&self, account: &str, rules: Vec<PolicyRule>) {
        let role = Role {
            metadata: named(account),
            rules: Some(rules),
        };
        let binding = RoleBinding {
            metadata: named(account),
            role_ref: role_ref("Role", account),
            subjects: Some(vec![self.subject(account)]),
        };
        let parameters = PostParams::default();
        let may_grant = "the administrator may grant";
        self.api()
            .create(&parameters, &role)
            .await
            .expect(may_grant);
        self.api()
            .create(&parameters, &binding)
            .await
            .expect(may_grant);
        self.is_granted(account, Some(&self.name), role.rules).await;
    }

    /// Waits until the authorizer, which hears of roles and bindings by watches
    /// of its own, lets an account do what it was just granted.
    async fn is_granted(&self, account: &str, place: Option<&str>, rules: Option<Vec<PolicyRule>>) {
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let user = format!("system:serviceaccount:{}:{account}", self.name);
        for rule in rules.into_iter().flatten() {
            let asked = asked_for(rule, place, &user);
            let mut polls = interval(GRANT_POLL);
            let granted = async {
                loop {
                    polls.tick().await;
                    let answer = reviews.create(&PostParams::default(), &asked).await;
                    let answer = answer.expect("the administrator may ask who may do what");
                    if answer.status.is_some_and(|status| status.allowed) {
                        return;
                    }
                }
            };
            timeout(GRANTED_WITHIN, granted)
                .await
                .unwrap_or_else(|_| panic!("still not allowed: {:?}", asked.spec));
        }
    }

    fn subject(&self, account: &str) -> Subject {
        Subject {
            kind: "ServiceAccount".to_owned(),
            name: account.to_owned(),
            namespace: Some(self.name.clone()),
            ..Subject::default()
        }
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

/// The question whether a user may do the first thing that a rule allows.
fn asked_for(rule: PolicyRule, place: Option<&str>, user: &str) -> SubjectAccessReview {
    let first = |list: Option<Vec<String>>| list.and_then(|list| list.into_iter().next());
    let resource = first(rule.resources).unwrap_or_default();
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, part)) => (resource.to_owned(), Some(part.to_owned())),
        None => (resource, None),
    };
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                namespace: place.map(str::to_owned),
                verb: rule.verbs.into_iter().next(),
                group: first(rule.api_groups),
                resource: Some(resource),
                subresource,
                name: first(rule.resource_names),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// Whether a pod carries the sidecar, as a native sidecar or as a container.
pub fn is_injected(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().expect("a stored pod has a spec");
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .any(|container| container.name == PROXY_CONTAINER)
}

/// A pod with one container, as a person would write it.
pub fn a_pod(name: &str) -> PodBuilder {
    PodBuilder(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {}, "annotations": {}},
        "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
    }))
}

/// See [`a_pod`].
pub struct PodBuilder(Value);

impl PodBuilder {
    pub fn labels(self, labels: &[(&str, &str)]) -> Self {
        self.over("/metadata/labels", json!(owned(labels)))
    }

    pub fn annotations(self, annotations: &[(&str, &str)]) -> Self {
        self.over("/metadata/annotations", json!(owned(annotations)))
    }

    /// Fields of the spec, over those that are there.
    pub fn spec(self, fields: Value) -> Self {
        self.over("/spec", fields)
    }

    pub fn build(self) -> Pod {
        serde_json::from_value(self.0).expect("the test wrote a pod")
    }

    fn over(mut self, path: &str, fields: Value) -> Self {
        let own = self.0.pointer_mut(path).and_then(Value::as_object_mut);
        let own = own.expect("the builder made this object");
        if let Value::Object(fields) = fields {
            own.extend(fields);
        }
        self
    }
}

/// A rule of a role. Without names, all resources of the kind are meant.
pub fn may(verbs: &[&str], group: &str, resource: &str, names: &[&str]) -> PolicyRule {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
    PolicyRule {
        api_groups: Some(list(&[group])),
        resources: Some(list(&[resource])),
        resource_names: Some(list(names)).filter(|names: &Vec<_>| !names.is_empty()),
        verbs: list(verbs),
        ..PolicyRule::default()
    }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
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
