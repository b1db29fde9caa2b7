//! Certificates by Kubernetes' own requests, made as a kubelet makes them.

use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::pem;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::verifier::{PeerVerifier, Role};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::namespace::{Namespace, a_pod};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::cluster::until;
use crate::control::create;
use crate::trust_bundle::{Mesh, SIGNER};

/// A pod on a node, and the CA with its signer switched on.
struct World {
    mesh: Mesh,
    pod: Pod,
    account: ServiceAccount,
    node: Node,
}

impl World {
    async fn start() -> Self {
        let mesh = Mesh::start(&[("BULKHEAD_CA_POD_CERTIFICATES", "true")]).await;
        let nodes: Api<Node> = Api::all(mesh.client.clone());
        let node = create(&nodes, json!({"metadata": {"name": "node-1"}})).await;
        let shop = Namespace::create_named(&mesh.client, "shop", &[], &[]).await;
        shop.create_service_account("cart").await;
        shop.create_service_account("bank").await;
        let pod = a_pod("cart-0").spec(json!({"serviceAccountName": "cart", "nodeName": "node-1"}));
        let pod = shop.create_pod(&pod.build()).await.unwrap();
        let accounts: Api<ServiceAccount> = shop.api();
        Self {
            account: accounts.get("cart").await.unwrap(),
            mesh,
            pod,
            node,
        }
    }

    /// A request as kubelet writes it, with these fields otherwise.
    async fn asks(&self, name: &str, key: &PrivateKey, otherwise: Value) -> DynamicObject {
        self.writes(name, key, otherwise).await;
        self.answered(name).await
    }

    /// All requests.
    fn requests(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.mesh.client.clone(), "shop", &resource())
    }

    async fn answered(&self, name: &str) -> DynamicObject {
        let api = self.requests();
        let answered = until(async || {
            let found = api.get(name).await.unwrap();
            let is_answered = found.data["status"]["conditions"].is_array();
            is_answered.then_some(found)
        });
        answered.await.expect("the CA answers")
    }

    async fn writes(&self, name: &str, key: &PrivateKey, otherwise: Value) {
        let request = csr::create(key, None).unwrap();
        let request = pem::decode(&request, 10_000)
            .unwrap()
            .remove(0)
            .der
            .to_vec();
        let mut spec = json!({
            "signerName": SIGNER,
            "podName": self.pod.name_any(),
            "podUID": self.pod.uid(),
            "serviceAccountName": "cart",
            "serviceAccountUID": self.account.uid(),
            "nodeName": self.node.name_any(),
            "nodeUID": self.node.uid(),
            "stubPKCS10Request": ByteString(request),
        });
        for (name, value) in otherwise.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let object = DynamicObject::new(name, &resource()).data(json!({ "spec": spec }));
        let parameters = PostParams::default();
        self.requests().create(&parameters, &object).await.unwrap();
    }
}

fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "PodCertificateRequest");
    ApiResource::from_gvk(&kind)
}

fn answer(object: &DynamicObject) -> (&str, &str) {
    let condition = &object.data["status"]["conditions"][0];
    let word = |name: &str| condition[name].as_str().unwrap();
    (word("type"), word("reason"))
}

#[tokio::test]
async fn kubelet_gets_the_certificate_of_the_pods_service_account() {
    let world = World::start().await;
    let key = PrivateKey::generate().unwrap();
    for (name, seconds) in [("day", 86_400), ("hour", 3_600)] {
        let wish = json!({"maxExpirationSeconds": seconds});
        let object = world.asks(name, &key, wish).await;
        assert_eq!(answer(&object), ("Issued", "Issued"), "{:?}", object.data);
        let chain = object.data["status"]["certificateChain"].as_str().unwrap();
        let chain = SvidChain::from_pem(chain).unwrap();
        assert_eq!(
            chain.id().as_str(),
            "spiffe://cluster.local/ns/shop/sa/cart"
        );
        assert!(chain.is_for(key.public_key()));
        let der = chain.to_der();
        let verifier = PeerVerifier::any_member(Arc::new(world.mesh.ca.trust_bundle()));
        verifier
            .verify(&der[0], &der[1..], Role::Client, Clock::system().now())
            .expect("peers accept it");
        let valid = chain
            .not_after()
            .duration_since(chain.not_before())
            .unwrap();
        assert!(valid.as_secs() <= seconds, "{valid:?}");
    }
    assert_eq!(
        world.mesh.metric("bulkhead_ca_certificates_issued_total"),
        2
    );
}

#[tokio::test]
async fn a_request_that_is_not_of_the_pod_that_it_names_is_denied() {
    let world = World::start().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(world.mesh.client.clone(), "shop");
    let bank = accounts.get("bank").await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let unknown = "11111111-2222-4333-8444-555555555555";
    for (name, otherwise, reason) in [
        (
            "another-account",
            json!({"serviceAccountName": "bank", "serviceAccountUID": bank.uid()}),
            "NotThePod",
        ),
        ("predecessor", json!({"podUID": unknown}), "NotThePod"),
        (
            "account-before",
            json!({"serviceAccountUID": unknown}),
            "NotThePod",
        ),
        ("another-node", json!({"nodeName": "node-2"}), "NotThePod"),
        (
            "annotations",
            json!({"unverifiedUserAnnotations": {"example.org/name": "bank"}}),
            "InvalidUnverifiedUserAnnotations",
        ),
    ] {
        let object = world.asks(name, &key, otherwise).await;
        assert_eq!(answer(&object), ("Denied", reason), "{name}");
        assert!(
            object.data["status"]["certificateChain"].is_null(),
            "{name}"
        );
    }
    assert_eq!(
        world.mesh.metric("bulkhead_ca_certificates_issued_total"),
        0
    );
}

#[tokio::test]
async fn a_request_that_somebody_changes_before_it_is_answered_is_answered_all_the_same() {
    let world = World::start().await;
    let key = PrivateKey::generate().unwrap();
    let names: Vec<_> = (0..24).map(|number| format!("request-{number}")).collect();
    let label = Patch::Merge(json!({"metadata": {"labels": {"seen": "yes"}}}));
    let (api, parameters) = (world.requests(), PatchParams::default());
    for name in &names {
        world.writes(name, &key, json!({})).await;
        api.patch(name, &parameters, &label).await.unwrap();
    }
    for name in &names {
        let object = world.answered(name).await;
        assert_eq!(answer(&object), ("Issued", "Issued"), "{name}");
    }
}
