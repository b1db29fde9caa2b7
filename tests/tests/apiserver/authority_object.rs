//! The CA's own object in the API server.

use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, NAME, Phase,
};
use bulkhead_runtime::monitoring::Monitoring;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

use crate::cluster::until;
use crate::trust_bundle::{CLUSTER_TRUST_BUNDLE, Mesh, SIGNER, SYSTEM_NAMESPACE, start_ca};

fn authorities(mesh: &Mesh) -> Api<CertificateAuthority> {
    Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE)
}

async fn settled(mesh: &Mesh) -> CertificateAuthority {
    let api = authorities(mesh);
    let found = until(async || {
        let found = api.get_opt(NAME).await.unwrap()?;
        found.status.as_ref()?.phase?;
        Some(found)
    });
    found
        .await
        .expect("the CA makes its object, and writes its status")
}

#[tokio::test]
async fn the_ca_makes_its_object_and_says_in_it_what_there_is() {
    let mesh = Mesh::start(&[]).await;
    let object = settled(&mesh).await;
    assert!(
        object.metadata.owner_references.is_some(),
        "it goes with the installation"
    );
    let status = object.status.unwrap();
    assert_eq!(status.phase, Some(Phase::Settled));
    assert_eq!(status.root_generation, status.target_generation);
    let bundle = status.trust_bundle.unwrap();
    assert_eq!(bundle.id, mesh.ca.trust_bundle().id().to_string());
    for kind in [AuthorityKind::Root, AuthorityKind::Intermediate] {
        let signs = status
            .authorities
            .iter()
            .any(|authority| authority.kind == kind && authority.state == AuthorityState::Active);
        assert!(signs, "{kind}: {:?}", status.authorities);
    }
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|found| (found.type_.as_str(), found.status.as_str()))
        .collect();
    let expected = [
        ("Ready", "True"),
        ("RotationProgressing", "False"),
        ("Expiring", "False"),
    ];
    assert_eq!(conditions, expected);
    assert!(status.expires.is_some());
}

#[tokio::test]
async fn an_object_that_somebody_deleted_is_made_again() {
    let mesh = Mesh::start(&[]).await;
    let before = settled(&mesh).await;
    authorities(&mesh)
        .delete(NAME, &DeleteParams::default())
        .await
        .unwrap();
    let again = until(async || {
        let found = authorities(&mesh).get_opt(NAME).await.unwrap()?;
        found.status.as_ref()?.phase?;
        (found.metadata.uid != before.metadata.uid).then_some(())
    });
    again.await.expect("it is made again, with its status");
}

#[tokio::test]
async fn what_control_and_what_people_write_into_it_stays() {
    let mesh = Mesh::start(&[]).await;
    settled(&mesh).await;
    let api = authorities(&mesh);
    let proxies = json!({"status": {"proxies": {
        "total": 1, "holding": 1, "renewed": 1, "summary": "1/1", "bundle": "a",
        "signingRoot": "b", "at": "2026-01-01T00:00:00Z",
    }}});
    let control = PatchParams {
        field_manager: Some("bulkhead-control".to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(NAME, &control, &Patch::Merge(proxies))
        .await
        .unwrap();
    let current = settled(&mesh)
        .await
        .status
        .unwrap()
        .root_generation
        .unwrap();
    let order = json!({"spec": {"rootGeneration": current}});
    api.patch(NAME, &PatchParams::default(), &Patch::Merge(order))
        .await
        .unwrap();
    let seen = until(async || {
        let found = api.get(NAME).await.unwrap();
        let status = found.status.as_ref()?;
        (status.observed_generation == found.metadata.generation).then_some(found)
    });
    let seen = seen.await.expect("the CA sees the order");
    assert_eq!(seen.spec.root_generation, Some(current));
    assert_eq!(seen.status.unwrap().proxies.unwrap().summary, "1/1");
}

#[tokio::test]
async fn there_is_one_certificate_authority_and_its_generations_are_numbers_from_one() {
    let mesh = Mesh::start(&[]).await;
    settled(&mesh).await;
    let api = authorities(&mesh);
    let zero = Patch::Merge(json!({"spec": {"rootGeneration": 0}}));
    let refused = api.patch(NAME, &PatchParams::default(), &zero).await;
    assert!(refused.is_err());
    let mut other = CertificateAuthority::new("other", Default::default());
    other.metadata.namespace = Some(SYSTEM_NAMESPACE.to_owned());
    let refused = api.create(&Default::default(), &other).await.unwrap_err();
    assert!(
        refused.to_string().contains("its name is bulkhead"),
        "{refused}"
    );
}

#[tokio::test]
async fn one_replica_holds_the_lease_and_the_next_takes_it_over_at_once() {
    let Mesh {
        server,
        client,
        ca: first,
        ..
    } = Mesh::start(&[("BULKHEAD_CA_INSTANCE", "first")]).await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let holder = async || {
        let lease = leases.get_opt("bulkhead-ca").await.unwrap()?;
        lease.spec?.holder_identity
    };
    let is_held_by = async |name: &str| {
        let held = until(async || holder().await.filter(|holder| holder == name));
        held.await.is_some()
    };
    assert!(is_held_by("first").await);
    let settings = [("BULKHEAD_CA_INSTANCE", "second")];
    let second = start_ca(&server, &client, &Monitoring::default(), &settings).await;
    first.drain(std::time::Duration::from_secs(10)).await;
    assert!(is_held_by("second").await);
    drop(second);
}

#[tokio::test]
async fn the_whole_cluster_gets_the_roots_as_a_trust_bundle_of_our_signer() {
    let mesh = Mesh::start(&[]).await;
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "ClusterTrustBundle");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::all_with(mesh.client.clone(), &resource);
    let roots = mesh.ca.trust_bundle().to_pem();
    let is_right = async || {
        let found = until(async || {
            let found = api.get_opt(CLUSTER_TRUST_BUNDLE).await.unwrap()?;
            (found.data["spec"]["trustBundle"] == *roots).then_some(found)
        });
        found.await.expect("the roots come by themselves")
    };
    let found = is_right().await;
    assert_eq!(found.data["spec"]["signerName"], SIGNER);
    let labels = found.metadata.labels.unwrap();
    assert_eq!(labels["ca.bulkhead.io/trust-domain"], "cluster.local");
    assert!(found.metadata.owner_references.is_some());

    api.delete(CLUSTER_TRUST_BUNDLE, &DeleteParams::default())
        .await
        .unwrap();
    is_right().await;
}
