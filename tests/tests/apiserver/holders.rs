//! Which proxies hold the trust bundle, as control says it to whoever rotates a
//! root.

use std::time::UNIX_EPOCH;

use bulkhead_core::discovery::ResourceKind;
use bulkhead_core::held::Held;
use bulkhead_crds::certificate_authority::{
    Authority, AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthoritySpec,
    CertificateAuthorityStatus, NAME, Phase, Proxies, TrustBundleStatus,
};
use bulkhead_proto::xds::Request;
use bulkhead_tests::subscriber::Subscriber;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::until;
use crate::control::{SYSTEM_NAMESPACE, World, becomes};

const OLD: &str = "00112233445566778899aabbccddeeff";
const NEW: &str = "ffeeddccbbaa99887766554433221100";
const ROOT: &str = "aa";

fn authorities(world: &World) -> Api<CertificateAuthority> {
    Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE)
}

/// As the CA would: this bundle is out, and this root signs.
async fn publish(world: &World, bundle: &str) {
    publish_with(world, bundle, ROOT).await;
}

async fn publish_with(world: &World, bundle: &str, root: &str) {
    let status = CertificateAuthorityStatus {
        phase: Some(Phase::Publishing),
        trust_bundle: Some(TrustBundleStatus {
            id: bundle.to_owned(),
            sequence: 1,
            roots: 1,
        }),
        authorities: vec![Authority {
            kind: AuthorityKind::Root,
            generation: 1,
            state: AuthorityState::Active,
            fingerprint: root.to_owned(),
            serial: None,
            not_before: None,
            not_after: None,
            key_type: None,
            issuer: None,
        }],
        ..CertificateAuthorityStatus::default()
    };
    let patch = Patch::Merge(json!({ "status": status }));
    authorities(world)
        .patch_status(NAME, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

async fn says(proxy: &mut Subscriber, bundle: &str) {
    let held = Held {
        bundle: bundle.to_owned(),
        signing_root: ROOT.to_owned(),
        certificate_expires: UNIX_EPOCH,
    };
    let request = Request {
        held: Some(held),
        ..Request::new(ResourceKind::Inbound)
    };
    proxy.say(request).await.unwrap();
}

async fn until_said(world: &World, what: &str, is_so: impl Fn(&Proxies) -> bool) -> Proxies {
    let api = authorities(world);
    let mut last = None;
    let found = until(async || {
        let status = api.get(NAME).await.unwrap().status;
        last = status.and_then(|status| status.proxies);
        last.clone().filter(&is_so)
    });
    let found = found.await;
    found.unwrap_or_else(|| panic!("not in time: {what}; it is {last:?}"))
}

#[tokio::test]
async fn each_proxy_without_the_new_bundle_is_named_until_it_says_that_it_holds_it() {
    let mut world = World::start().await;
    let object = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
    authorities(&world)
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
    publish(&world, OLD).await;

    let reason = |said: &Proxies, pod: &str| {
        let found = said.missing.iter().find(|one| one.pod == pod);
        found.map(|one| one.reason.clone()).unwrap_or_default()
    };
    let alone = until_said(&world, "nobody is connected", |said| said.total == 2).await;
    assert_eq!((alone.holding, alone.summary.as_str()), (0, "0/2"));
    assert!(reason(&alone, "shop/cart-0").contains("not connected"));
    // Control shows proxies a certificate of its own, and this is of another root.
    let control = world.control_pod();
    assert!(reason(&alone, &control).contains("another trust bundle"));

    let mut proxy = world.proxy().await;
    let first = Request::new(ResourceKind::Inbound);
    proxy.say(first).await.unwrap();
    let silent = |said: &Proxies| said.missing.iter().any(|one| one.reason.contains("older"));
    until_said(&world, "an older proxy", silent).await;

    says(&mut proxy, OLD).await;
    let held = until_said(&world, "it holds the bundle", |said| said.holding == 1).await;
    assert_eq!((held.renewed, held.missing.len()), (1, 1));
    let total = "bulkhead_control_trust_proxies{state=\"holding\"} 1";
    assert!(world.metrics().contains(total), "{}", world.metrics());

    publish(&world, NEW).await;
    let behind = until_said(&world, "there is a newer one", |said| said.bundle == NEW).await;
    assert_eq!(behind.holding, 0);
    assert!(reason(&behind, "shop/cart-0").contains(OLD), "{behind:?}");
    says(&mut proxy, NEW).await;
    until_said(&world, "it holds the new one", |said| said.holding == 1).await;

    let reports = Api::<ConfigMap>::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
    let ours = ListParams::default().labels("bulkhead.io/component=proxy-report");
    let written = reports.list(&ours).await.unwrap().items;
    assert_eq!(written.len(), 1, "one of each replica");
    assert!(written[0].metadata.owner_references.is_some());

    let (bundle, root) = world.control_holds();
    publish_with(&world, &bundle, &root).await;
    let said = until_said(&world, "control holds it", |said| said.bundle == bundle).await;
    assert_eq!((said.holding, said.renewed), (1, 1), "{said:?}");
    assert_eq!(reason(&said, &control), "");
    publish(&world, NEW).await;
    until_said(&world, "the proxy's again", |said| said.bundle == NEW).await;

    drop(proxy);
    until_said(&world, "it has gone", |said| said.holding == 0).await;
    world.end_control().await;
    let lease = Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(
        world.client.clone(),
        SYSTEM_NAMESPACE,
    );
    becomes("the Lease is given up", async || {
        let lease = lease.get("bulkhead-control").await.unwrap();
        lease.spec.unwrap().holder_identity.is_none()
    })
    .await;
}
