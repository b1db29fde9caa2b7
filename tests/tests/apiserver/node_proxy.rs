//! A node's proxy, as ztunnel is: it asks for the certificates of pods on its own
//! node, with a token of its own and their names.

use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use bulkhead_tests::namespace::a_pod;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ResourceExt as _};
use serde_json::json;
use tonic::{Code, Status};

use crate::certificate_authority::{Mesh, chain_of, request};
use crate::cluster::until;

const ZTUNNEL: &str = "ztunnel";

/// What runs on the node `here`, with its own token, and the CA.
struct NodeProxy {
    mesh: Mesh,
    token: String,
}

impl NodeProxy {
    /// The CA takes these ServiceAccounts for those of node proxies.
    async fn start(named: &[&str]) -> Self {
        let mesh = Mesh::start_with(named).await;
        let pod = pod_on(&mesh, ZTUNNEL, "here").await;
        let audience = Some(TOKEN_AUDIENCE);
        let token = mesh.namespace.token(ZTUNNEL, audience, Some(&pod)).await;
        Self { mesh, token }
    }

    /// Asks for the certificate of an account, by a request with the account's name
    /// in it too, as ztunnel does.
    async fn gets(&self, account: &str) -> Result<(), Status> {
        self.gets_by(account, account).await
    }

    /// The same, with another name in the request.
    async fn gets_by(&self, account: &str, named: &str) -> Result<(), Status> {
        let id = self.mesh.id_of(account);
        let csr = request(Some(&self.mesh.id_of(named)));
        let answer = self.mesh.sign_for(Some(&id), &self.token, &csr).await?;
        assert_eq!(self.mesh.verify(&chain_of(&answer)), id);
        Ok(())
    }

    async fn is_denied(&self, account: &str, named: &str) {
        let refused = self.gets_by(account, named).await.expect_err(account);
        assert_eq!(refused.code(), Code::PermissionDenied, "{account}");
    }
}

/// A pod that the scheduler has given to a node.
async fn pod_on(mesh: &Mesh, account: &str, node: &str) -> Pod {
    mesh.namespace.create_service_account(account).await;
    let pod = a_pod(&format!("{account}-{node}"));
    let pod = pod.spec(json!({"serviceAccountName": account, "nodeName": node}));
    mesh.namespace.create_pod(&pod.build()).await.unwrap()
}

#[tokio::test]
async fn ztunnel_gets_certificates_of_pods_on_its_own_node_while_they_are_there() {
    let ztunnel = NodeProxy::start(&[ZTUNNEL]).await;
    pod_on(&ztunnel.mesh, "pay", "elsewhere").await;
    let shop = pod_on(&ztunnel.mesh, "shop", "here").await;
    // The CA hears of pods in the order in which they were made: of this one last.
    until(async || ztunnel.gets("shop").await.ok())
        .await
        .unwrap();
    ztunnel.gets(ZTUNNEL).await.expect("and its own");
    ztunnel.is_denied("pay", "pay").await;
    ztunnel.is_denied("nobody", "nobody").await;
    ztunnel.is_denied("shop", "pay").await;

    let pods = ztunnel.mesh.namespace.api::<Pod>();
    pods.delete(&shop.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    let refused = until(async || ztunnel.gets("shop").await.err()).await;
    assert_eq!(refused.unwrap().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn whoever_is_not_named_a_node_proxy_asks_for_itself_alone() {
    let ztunnel = NodeProxy::start(&["another"]).await;
    pod_on(&ztunnel.mesh, "shop", "here").await;
    ztunnel.gets(ZTUNNEL).await.expect("its own");
    ztunnel.is_denied("shop", "shop").await;
}
