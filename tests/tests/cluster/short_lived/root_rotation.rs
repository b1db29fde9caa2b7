//! Another root signs, and the one before leaves, as people order it.

use bulkhead_crds::certificate_authority::{CertificateAuthorityStatus, Phase};
use bulkhead_tests::cluster::apps::{App, Load, server, sum};
use bulkhead_tests::cluster::commands::{Ended, Running, bulkhead_json, kubectl};
use bulkhead_tests::cluster::{SOON, SYSTEM_NAMESPACE, alone, until};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    Authority, ROTATED, STRICT, none_failed, sidecar, signing_root, start_web, under_load,
};

/// Exit codes of `bulkhead ca rotate-root`.
const WAITS: i32 = 3;
const INTERRUPTED: i32 = 130;

async fn rotate_root(arguments: &[&str]) -> Ended {
    let arguments = [&["ca", "rotate-root"], arguments].concat();
    Running::start(&arguments).ended(ROTATED).await
}

#[tokio::test]
async fn a_root_is_rotated_past_a_hanging_proxy_with_no_restart_and_no_failed_request() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = start_web(&namespace).await;
    let hanging = server("hanging").start(&namespace).await;
    let loads = under_load(&namespace, &web).await;
    let authority = Authority::of(&cluster);
    let before = authority.settles().await;
    let (old, new) = (before.root_generation.unwrap(), next_root(&before));
    let pod = hanging.pod().await;

    let stopped = sidecar(&pod).expect("its sidecar runs").stop();
    is_named_and_waited_for(&authority, &pod, new).await;
    let forced = Running::start(&["ca", "rotate-root", "--force", "--yes"]);
    let signs = |status: &CertificateAuthorityStatus| status.root_generation == Some(new);
    authority.says("it signs all the same", signs).await;
    drop(stopped);
    // Whoever followed it lost the connection, and two come back to it.
    forced.interrupt();
    let forced = forced.ended(SOON).await;
    assert_eq!(forced.code, Some(INTERRUPTED), "{forced:?}");
    assert!(forced.stdout.contains(&pod.name_any()), "{forced:?}");
    let (one, other) = tokio::join!(rotate_root(&[]), rotate_root(&[]));
    for ended in [one, other] {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("Done"), "{ended:?}");
    }
    let after = authority.settles().await;
    assert_eq!(after.root_generation, Some(new), "one rotation began");
    is_told_in_order(&[
        ("RootPublished", new),
        ("RootActivated", new),
        ("RootRetired", old),
    ])
    .await;
    is_below(&pod, signing_root(&after)).await;

    is_undone(&authority, new).await;
    renewed_without_restart(&web, &loads).await;
    none_failed(&loads).await;
}

/// The generation of the root that a rotation makes.
fn next_root(status: &CertificateAuthorityStatus) -> u32 {
    let roots = status.authorities.iter();
    let roots = roots.filter(|authority| authority.kind.to_string() == "root");
    roots.map(|root| root.generation).max().unwrap() + 1
}

/// A rotation is ordered, which this one proxy holds up.
async fn is_named_and_waited_for(authority: &Authority, pod: &Pod, root: u32) {
    // Control, too, needs some seconds to see that there is another bundle to hold.
    let ended = rotate_root(&["--patience", "15s"]).await;
    assert_eq!(ended.code, Some(WAITS), "{ended:?}");
    assert!(ended.stdout.contains(&pod.name_any()), "{ended:?}");
    assert!(ended.stderr.contains("--force"), "{ended:?}");
    let status = authority
        .says("all others hold the new root", |status| {
            let proxies = status.proxies.as_ref();
            status.phase == Some(Phase::Publishing)
                && proxies.is_some_and(|proxies| proxies.holding + 1 == proxies.total)
        })
        .await;
    let missing = &status.proxies.as_ref().unwrap().missing[0];
    assert!(missing.pod.ends_with(&pod.name_any()), "{status:?}");
    assert_eq!(status.target_generation, Some(root));
    assert_ne!(status.root_generation, Some(root));

    let table = kubectl(&["get", "bca", "-n", SYSTEM_NAMESPACE]).await;
    let summary = &status.proxies.as_ref().unwrap().summary;
    for word in [
        "PHASE", "ROOT", "PROXIES", "EXPIRES", "MESSAGE", "AGE", summary,
    ] {
        assert!(table.contains(word), "{table}");
    }
}

/// A rotation that nothing is signed by yet goes back to the root before.
async fn is_undone(authority: &Authority, root: u32) {
    let ordered = rotate_root(&["--no-wait"]).await;
    assert_eq!(ordered.code, Some(0), "{ordered:?}");
    authority
        .says("the next root is in the trust bundle", |status| {
            status.target_generation == Some(root + 1)
                && status
                    .trust_bundle
                    .as_ref()
                    .is_some_and(|bundle| bundle.roots == 2)
        })
        .await;
    let undone = rotate_root(&["--undo"]).await;
    assert_eq!(undone.code, Some(0), "{undone:?}");
    let settled = authority.settles().await;
    assert_eq!(settled.root_generation, Some(root));
    is_told_in_order(&[("RotationUndone", root)]).await;
    is_told_in_order(&[("RootRetired", root + 1)]).await;
}

/// Waits until there are Events of these reasons about these roots, and sees that
/// each is younger than the one before.
async fn is_told_in_order(expected: &[(&str, u32)]) {
    let arguments = [
        "get",
        "events",
        "-n",
        SYSTEM_NAMESPACE,
        "--field-selector",
        "involvedObject.kind=CertificateAuthority",
        "-o",
        "json",
    ];
    let times = until("there is an Event of each step", async || {
        let events: Value = serde_json::from_str(&kubectl(&arguments).await).unwrap();
        let events = events["items"].as_array().unwrap();
        let time_of = |(reason, root): &(&str, u32)| {
            let found = events.iter().find(|event| {
                let words = event["message"].as_str().unwrap().split(' ');
                event["reason"] == *reason && words.into_iter().any(|word| word == root.to_string())
            });
            found?["eventTime"].as_str().map(str::to_owned)
        };
        expected.iter().map(time_of).collect::<Option<Vec<_>>>()
    })
    .await;
    assert!(times.is_sorted(), "{expected:?} at {times:?}");
}

/// Waits until the certificate of a pod ends in this root.
async fn is_below(pod: &Pod, root: &str) {
    let namespace = pod.namespace().unwrap();
    let held = bulkhead_json(&["secret", "-n", &namespace, &pod.name_any()]).await;
    assert_eq!(held["trustBundle"]["signingRoot"], root, "{held}");
}

/// Sees that certificates were renewed meanwhile, and nothing else began anew.
async fn renewed_without_restart(web: &App<'_>, loads: &[Load<'_>]) {
    for app in [web].into_iter().chain(loads.iter().map(Load::app)) {
        let pod = app.pod().await;
        until("its third certificate is there", async || {
            let labels = ["outcome=\"success\""];
            let renewals = sum(&pod, "bulkhead_certificate_renewals_total", &labels).await;
            (renewals >= 3.0).then_some(())
        })
        .await;
        let status = pod.status.unwrap();
        let containers = status.container_statuses.into_iter().flatten();
        let sidecars = status.init_container_statuses.into_iter().flatten();
        for container in containers.chain(sidecars) {
            assert_eq!(container.restart_count, 0, "{}", container.name);
        }
    }
}
