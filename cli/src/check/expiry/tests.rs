//! What counts as a problem, by kind, length of life and what was asked for.

use std::sync::Arc;

use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::serving;
use bulkhead_runtime::clock::Clock;
use rustls::ServerConfig;
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::check::finding::Status;
use crate::fake::FakeCluster;

fn now() -> SystemTime {
    moment::at(1_796_083_200)
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * moment::DAY)
}

/// An item of this many days, with so many left.
fn is_problem(kind: Kind, life: u64, left: u64, asked: Option<u64>) -> bool {
    let item = Item {
        what: "it".to_owned(),
        kind,
        not_before: Some(now() + days(left) - days(life)),
        not_after: now() + days(left),
        remedy: "renew it".to_owned(),
    };
    item.judge("authorities", asked.map(days), now())
        .is_problem()
}

#[test]
fn a_root_is_a_problem_sixty_days_before_its_end_or_when_it_is_asked_for() {
    assert!(!is_problem(Kind::Root, 3650, 61, None));
    assert!(is_problem(Kind::Root, 3650, 60, None));
    assert!(is_problem(Kind::Root, 3650, 61, Some(61)));
    assert!(!is_problem(Kind::Root, 3650, 30, Some(7)));
    // A root of a month, which somebody wanted, is not one from the start.
    assert!(!is_problem(Kind::Root, 30, 29, None));
    assert!(is_problem(Kind::Root, 30, 10, None));
}

#[test]
fn what_renews_itself_is_a_problem_only_when_that_did_not_happen_in_time() {
    assert!(!is_problem(Kind::Renewed, 1, 1, None));
    assert!(!is_problem(Kind::Renewed, 365, 122, None));
    assert!(is_problem(Kind::Renewed, 365, 121, None));
}

#[test]
fn what_somebody_asks_for_counts_for_everything() {
    for kind in [Kind::Root, Kind::Renewed] {
        assert!(is_problem(kind, 1, 1, Some(60)));
        assert!(is_problem(kind, 365, 121, Some(200)));
        assert!(!is_problem(kind, 365, 121, Some(100)));
    }
}

#[test]
fn what_has_expired_is_a_problem_whatever_was_asked_for() {
    let item = Item {
        what: "the root".to_owned(),
        kind: Kind::Root,
        not_before: None,
        not_after: now() - days(2),
        remedy: "renew it".to_owned(),
    };
    let finding = item.judge("authorities", Some(Duration::ZERO), now());
    assert!(finding.is_problem());
    assert_eq!(finding.message, "the root expired 2 days ago");
    assert_eq!(finding.remedy.as_deref(), Some("renew it"));
}

#[test]
fn every_authority_that_is_not_retired_is_looked_at() {
    let status: CertificateAuthorityStatus = serde_json::from_value(json!({
        "rootGeneration": 1, "targetGeneration": 2,
        "authorities": [
            {"kind": "root", "generation": 1, "state": "active", "fingerprint": "a",
             "notBefore": "2017-01-01T00:00:00Z", "notAfter": "2026-12-31T00:00:00Z"},
            {"kind": "root", "generation": 2, "state": "published", "fingerprint": "b",
             "notBefore": "2026-12-01T00:00:00Z", "notAfter": "2036-12-01T00:00:00Z"},
            {"kind": "intermediate", "generation": 3, "state": "active", "fingerprint": "c",
             "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2027-01-01T00:00:00Z"},
            {"kind": "root", "generation": 0, "state": "retired", "fingerprint": "d",
             "notAfter": "2017-01-01T00:00:00Z"},
            {"kind": "jwt", "generation": 1, "state": "active", "fingerprint": "e"},
        ],
    }))
    .unwrap();
    let found = of_status(&status).into_iter();
    let found: Vec<_> = found
        .map(|item| item.judge("authorities", None, now()))
        .collect();
    assert_eq!(found.len(), 3);
    assert!(found[0].is_problem() && found[2].is_problem(), "{found:#?}");
    assert!(!found[1].is_problem());
    assert!(found[0].remedy.as_deref().unwrap().contains("under way"));
}

/// What a replica shows whose certificate of a day is so old.
fn serving(age: Duration) -> Arc<ServerConfig> {
    let made = Clock::system().now() - age;
    let root = Authority::new_root(&default_trust_domain(), days(30), made).unwrap();
    let intermediate = root.new_intermediate(days(20), made).unwrap();
    let names = [serving::ServerName::parse("bulkhead-control").unwrap()];
    let certificate = intermediate.issue_serving(&names, days(1), made).unwrap();
    certificate.server_config(["h2"]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_shows_a_certificate_which_it_should_have_renewed_is_named() {
    let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "bulkhead-system"}});
    let replicas = ["control-0", "control-1", "control-2"].map(pod);
    let mut cluster = FakeCluster::new(move |uri| {
        let is_control = uri
            .query()
            .is_some_and(|it| it.contains("bulkhead-control"));
        let items = if is_control { &replicas[..] } else { &[] };
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
    });
    let hour = Duration::from_secs(3600);
    // The third does not listen.
    for (name, age) in [("control-0", hour), ("control-1", 17 * hour)] {
        let acceptor = TlsAcceptor::from(serving(age));
        cluster = cluster.listens(name, ports::CONTROL_PLANE, move |stream| {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await });
        });
    }
    let look = Look {
        cluster: &cluster.start(),
        expires_within: None,
        now: Clock::system().now(),
        namespaces: Vec::new(),
    };
    let found = shown(&look).await.unwrap();
    let status: Vec<_> = found.iter().map(|finding| finding.status).collect();
    let wanted = [Status::Ok, Status::Problem, Status::Skipped];
    assert_eq!(status, wanted, "{found:#?}");
    let Finding {
        message, remedy, ..
    } = &found[1];
    assert!(
        message.starts_with("the certificate that control-1 shows"),
        "{message}"
    );
    assert!(
        message.ends_with("should have been renewed by now"),
        "{message}"
    );
    assert_eq!(remedy.as_deref(), Some(SEE_CONTROL));
    assert!(found[2].message.contains("control-2 could not be asked"));
}
