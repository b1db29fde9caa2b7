//! What libraries of the standard's get from the Workload API, and what they say
//! of it.

use bulkhead::mesh::Mesh;
use bulkhead_tests::config::{go_spiffe, py_spiffe};
use spiffe::{BundleSource as _, JwtSource, JwtSvid, TrustDomain, WorkloadApiClient, X509Source};
use tokio::process::Command;

use crate::application::{PATIENCE, Sidecar, id};

const RENEWALS: usize = 3;

#[tokio::test]
async fn go_spiffe_verifies_what_it_gets_and_follows_renewals() {
    let mut program = Command::new(go_spiffe().unwrap());
    program.args(["watch", "reports"]);
    verifies_and_follows(program).await;
}

#[tokio::test]
async fn py_spiffe_verifies_what_it_gets_and_follows_renewals() {
    let mut program = Command::new(py_spiffe().unwrap());
    program.args([
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spiffe/py_spiffe.py"),
        "reports",
    ]);
    verifies_and_follows(program).await;
}

/// The application says what it verified, and then each certificate that it gets.
async fn verifies_and_follows(program: Command) {
    let mesh = Mesh::start().await.unwrap();
    let sidecar = Sidecar::start(&mesh, "cart", |_| ()).await;
    let mut application = sidecar.run(program);
    assert_eq!(application.says().await, format!("x509 {}", id("cart")));
    assert_eq!(application.says().await, format!("jwt {}", id("cart")));
    let first = format!("update {}", sidecar.serial());
    assert_eq!(application.says().await, first);
    for _ in 0..RENEWALS {
        let serial = sidecar.renew().await;
        assert_eq!(application.says().await, format!("update {serial}"));
    }
}

#[tokio::test]
async fn the_spiffe_crate_takes_svids_and_bundles_and_follows_renewals() {
    let mesh = Mesh::start().await.unwrap();
    let sidecar = Sidecar::start(&mesh, "cart", |_| ()).await;
    let building = X509Source::builder().endpoint(sidecar.endpoint()).build();
    let source = tokio::time::timeout(PATIENCE, building)
        .await
        .unwrap()
        .unwrap();
    let domain = TrustDomain::new("cluster.local").unwrap();
    let mut updates = source.updated();
    for round in 0..=RENEWALS {
        let credentials = sidecar.proxy.latest.get().unwrap();
        let identity = credentials.identity();
        // The crate's own rules for SVIDs were kept, else it would go on without.
        let has = loop {
            let svid = source.svid().unwrap();
            if svid.leaf().as_bytes() == identity.chain().leaf().der().as_ref() {
                break svid;
            }
            let changed = tokio::time::timeout(PATIENCE, updates.changed()).await;
            changed.unwrap().unwrap();
        };
        assert_eq!(has.spiffe_id().to_string(), id("cart"), "round {round}");
        assert_eq!(has.cert_chain().len(), identity.chain().to_der().len());
        let key = identity.private_key().to_der().unwrap();
        assert_eq!(has.private_key().as_bytes(), key.as_slice());
        let bundle = source.bundle_for_trust_domain(&domain).unwrap().unwrap();
        let roots = bundle.authorities().iter().map(|root| root.as_bytes());
        let held = identity.bundle().roots().certificates();
        assert!(roots.eq(held.iter().map(|root| root.der().as_ref())));
        sidecar.renew().await;
    }
    source.shutdown().await;
}

#[tokio::test]
async fn the_spiffe_crate_verifies_tokens_itself_and_has_them_verified() {
    let mesh = Mesh::start().await.unwrap();
    let sidecar = Sidecar::start(&mesh, "cart", |_| ()).await;
    let building = JwtSource::builder().endpoint(sidecar.endpoint()).build();
    let source = tokio::time::timeout(PATIENCE, building)
        .await
        .unwrap()
        .unwrap();
    let svid = source.fetch_jwt_svid(&["reports"]).await.unwrap();
    let verified = JwtSvid::parse_and_validate(svid.token(), &source, &["reports"]).unwrap();
    assert_eq!(verified.spiffe_id().to_string(), id("cart"));
    assert_eq!(verified.audience(), ["reports"]);
    JwtSvid::parse_and_validate(svid.token(), &source, &["payments"]).unwrap_err();

    let client = WorkloadApiClient::connect_to(sidecar.endpoint())
        .await
        .unwrap();
    let asked = client.validate_jwt_token("reports", svid.token()).await;
    assert_eq!(asked.unwrap().spiffe_id().to_string(), id("cart"));
    let refused = client.validate_jwt_token("payments", svid.token()).await;
    assert!(refused.unwrap_err().is_invalid_argument());
    source.shutdown().await;
}
