//! What `bulkhead ca status` says, from an object and answers that are given.

use serde_json::json;

use super::super::replicas::Load;
use super::*;

/// 2026-12-01T00:00:00Z.
fn now() -> SystemTime {
    moment::at(1_796_083_200)
}

fn status() -> CertificateAuthorityStatus {
    serde_json::from_value(json!({
        "phase": "Publishing",
        "message": "97 of 100 workloads hold root 2",
        "rootGeneration": 1,
        "targetGeneration": 2,
        "trustBundle": {"id": "0123456789abcdef0123456789abcdef", "sequence": 1796083100, "roots": 2},
        "authorities": [
            {"kind": "root", "generation": 2, "state": "published", "fingerprint": "b".repeat(64),
             "notBefore": "2026-12-01T00:00:00Z", "notAfter": "2036-11-28T00:00:00Z", "keyType": "ECDSA P-256"},
            {"kind": "root", "generation": 1, "state": "active", "fingerprint": "a".repeat(64),
             "notBefore": "2017-01-01T00:00:00Z", "notAfter": "2026-12-31T00:00:00Z", "keyType": "RSA 4096"},
            {"kind": "jwt", "generation": 1, "state": "active", "fingerprint": "a-key-id"},
        ],
        "upstream": {"kind": "cert-manager", "signs": "intermediate", "state": "failing", "message": "no issuer"},
        "proxies": {"total": 100, "holding": 97, "renewed": 0, "summary": "97/100",
                    "bundle": "0123456789abcdef0123456789abcdef", "signingRoot": "a".repeat(64),
                    "missing": [{"pod": "shop/cart-1", "reason": "it holds the bundle of before"}],
                    "at": "2026-11-30T23:59:50Z"},
    }))
    .unwrap()
}

fn replica(pod: &str, load: Option<serde_json::Value>) -> Replica {
    Replica {
        pod: pod.to_owned(),
        node: Some("node-1".to_owned()),
        is_ready: load.is_some(),
        problem: load.is_none().then(|| "no answer within 3 s".to_owned()),
        load: load.map(|load| serde_json::from_value::<Load>(load).unwrap()),
    }
}

fn report(authority: Option<CertificateAuthorityStatus>, replicas: Vec<Replica>) -> Report {
    Report {
        schema: SCHEMA,
        switches: Vec::new(),
        ordered_root: Some(2),
        authority,
        replicas,
        unknown: Vec::new(),
    }
}

#[test]
fn people_see_what_signs_until_when_who_lags_and_who_waits() {
    let busy = json!({
        "issued_total": 1200, "issued_per_second": 40.0, "refused": {"token_expired": 3},
        "queue": {"length": 7, "waiting": [
            {"caller": "spiffe://cluster.local/ns/shop/sa/cart", "class": "issuance",
             "waiting": 7}]},
    });
    let replicas = vec![replica("ca-1", Some(busy)), replica("ca-2", None)];
    let text = report(Some(status()), replicas).to_text(now());
    assert_eq!(
        text,
        "Publishing: 97 of 100 workloads hold root 2
trust bundle 0123456789abcdef0123456789abcdef, sequence 1796083100, 2 roots

KIND  GENERATION  STATE      NOT BEFORE  NOT AFTER                  KEY          FINGERPRINT
root  1           active     2017-01-01  2026-12-31 (in 30 days)    RSA 4096     aaaaaaaaaaaaaaaa…
root  2           published  2026-12-01  2036-11-28 (in 3650 days)  ECDSA P-256  bbbbbbbbbbbbbbbb…
jwt   1           active     -           -                          -            a-key-id

upstream cert-manager, signs each intermediate: failing: no issuer

proxies: 97 of 100 hold this bundle, 0 have certificates below its first root
  shop/cart-1: it holds the bundle of before

REPLICA  READY  PER SECOND  ISSUED  REFUSED  WAITING
ca-1     yes    40.0        1200    3        7
ca-2     NO     ?           ?       ?        ?
refused 3: token_expired
waits: spiffe://cluster.local/ns/shop/sa/cart (issuance), 7 calls
"
    );
}

#[test]
fn a_report_of_proxies_that_is_old_or_of_another_bundle_is_not_shown_as_the_truth() {
    let mut old = status();
    let later = now() + std::time::Duration::from_secs(600);
    let text = report(Some(old.clone()), Vec::new()).to_text(later);
    assert!(
        text.contains("as control said 10 minutes ago: is it running?"),
        "{text}"
    );
    old.trust_bundle.as_mut().unwrap().id = "f".repeat(32);
    let text = report(Some(old), Vec::new()).to_text(now());
    assert!(
        text.contains("nobody knows which hold this bundle"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_known_is_said_and_the_rest_is_shown() {
    let mut without = report(None, Vec::new());
    without
        .unknown
        .push("which authorities there are: it is away".to_owned());
    assert!(!without.is_up());
    let text = without.to_text(now());
    assert_eq!(text, "not known: which authorities there are: it is away\n");
}

#[test]
fn the_fields_that_programs_read_stay() {
    let replicas = vec![replica("ca-1", Some(json!({"issued_per_second": 1.5})))];
    let written = serde_json::to_value(report(Some(status()), replicas)).unwrap();
    assert_eq!(written["schema"], "bulkhead.io/ca-status/v1");
    assert_eq!(written["orderedRoot"], 2);
    assert_eq!(
        written["authority"]["authorities"][0]["notAfter"],
        "2036-11-28T00:00:00Z"
    );
    assert_eq!(written["authority"]["proxies"]["holding"], 97);
    assert_eq!(written["replicas"][0]["load"]["issuedPerSecond"], 1.5);
    assert_eq!(written["replicas"][0]["isReady"], true);
    assert_eq!(written["unknown"], json!([]));
}
