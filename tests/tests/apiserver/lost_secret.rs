//! The Secret with the CA's keys is lost, or another CA's is put in its place, while
//! a replica signs.

use bulkhead::mesh::Mesh as Elsewhere;
use bulkhead_crds::certificate_authority::{CertificateAuthority, NAME};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};

use crate::cluster::until;
use crate::trust_bundle::{CONFIG_MAP, Mesh, SYSTEM_NAMESPACE, start_ca, try_to_start_ca};

const SECRET: &str = "bulkhead-ca";

/// Some more than any luck would have right.
const TIMES: usize = 10;

/// A CA that signs, as its object says, and a copy of its Secret.
async fn a_mesh_with_backup(settings: &[(&str, &str)]) -> (Mesh, Api<Secret>, Secret) {
    let mesh = Mesh::start(settings).await;
    mesh.has_roots("default").await;
    let objects: Api<CertificateAuthority> = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let told = until(async || {
        let object = objects.get_opt(NAME).await.unwrap()?;
        (!object.status?.authorities.is_empty()).then_some(())
    });
    told.await.expect("the CA says which root signs");
    let secrets: Api<Secret> = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let secret = secrets.get(SECRET).await.unwrap();
    let backup = Secret {
        metadata: ObjectMeta {
            name: secret.metadata.name,
            labels: secret.metadata.labels,
            owner_references: secret.metadata.owner_references,
            ..ObjectMeta::default()
        },
        ..secret
    };
    (mesh, secrets, backup)
}

#[tokio::test]
async fn a_lost_secret_begins_no_second_root_and_comes_back_from_a_backup() {
    let (mesh, secrets, backup) = a_mesh_with_backup(&[]).await;
    let trusted = mesh.ca.trust_bundle();
    secrets
        .delete(SECRET, &DeleteParams::default())
        .await
        .unwrap();

    let started = try_to_start_ca(&mesh.server, &mesh.client, &Default::default(), &[]).await;
    let said = format!("{:#}", started.err().expect("nothing to sign with"));
    assert!(said.contains("Restore the Secret from a backup"), "{said}");
    let found = secrets.get_opt(SECRET).await.unwrap();
    assert_eq!(found, None, "nobody begins another CA");
    assert_eq!(mesh.ca.trust_bundle(), trusted, "the one that runs goes on");

    secrets
        .create(&PostParams::default(), &backup)
        .await
        .unwrap();
    let again = start_ca(&mesh.server, &mesh.client, &Default::default(), &[]).await;
    assert_eq!(again.trust_bundle(), trusted);
    mesh.has_roots("default").await;
}

#[tokio::test]
async fn a_replica_whose_ca_was_replaced_leaves_the_trust_bundle_to_the_other() {
    let (mesh, secrets, mut secret) = a_mesh_with_backup(&[("BULKHEAD_CA_INSTANCE", "old")]).await;
    let replaced = mesh.ca.trust_bundle();
    secret.data = Some(somebody_elses().await);
    secrets
        .replace(SECRET, &PostParams::default(), &secret)
        .await
        .unwrap();
    let noticed = until(async || {
        let failures = mesh.metric("bulkhead_ca_store_failures_total");
        (failures > 0).then_some(())
    });
    noticed.await.expect("it looks at what is stored");

    // The next replica begins with what it finds, and its roots are what counts.
    let settings = [("BULKHEAD_CA_INSTANCE", "new")];
    let other = start_ca(&mesh.server, &mesh.client, &Default::default(), &settings).await;
    let roots = other.trust_bundle().to_pem();
    assert_ne!(roots, replaced.to_pem());
    let maps: Api<ConfigMap> = Api::namespaced(mesh.client.clone(), "default");
    let found = async || {
        let map = maps.get_opt(CONFIG_MAP).await.unwrap()?;
        map.data?.remove("ca.crt")
    };
    let theirs = until(async || found().await.filter(|found| *found == roots));
    theirs.await.expect("the other publishes its own");
    for _ in 0..TIMES {
        maps.delete(CONFIG_MAP, &DeleteParams::default())
            .await
            .unwrap();
        assert_eq!(until(found).await.as_ref(), Some(&roots));
    }
    assert_eq!(mesh.ca.trust_bundle(), replaced, "it signs on, for its own");
    let leases: Api<Lease> = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let rotates = until(async || {
        let lease = leases.get_opt("bulkhead-ca").await.unwrap()?;
        (lease.spec?.holder_identity? == "new").then_some(())
    });
    rotates.await.expect("the other takes the steps");
}

/// The files of a CA that has nothing to do with this one.
async fn somebody_elses() -> std::collections::BTreeMap<String, ByteString> {
    let directory = tempfile::tempdir().unwrap();
    let _elsewhere = Elsewhere::start_in(directory.path()).await.unwrap();
    let current = directory.path().join("ca/current");
    let files = std::fs::read_dir(current).unwrap().map(|file| {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        (name, ByteString(std::fs::read(file.path()).unwrap()))
    });
    files.collect()
}
