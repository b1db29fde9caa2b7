//! What is said of a sidecar's answer.

use std::time::Duration;

use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::authority::Authority;
use serde_json::{Value, json};

use super::*;

/// 2026-12-01T00:00:00Z.
fn now() -> SystemTime {
    moment::at(1_796_083_200)
}

fn root() -> Certificate {
    let lifetime = Duration::from_secs(3650 * moment::DAY);
    let root = Authority::new_root(&default_trust_domain(), lifetime, now()).unwrap();
    root.certificate().clone()
}

fn holding(said: Value) -> Holding {
    let said = serde_json::from_value(said).unwrap();
    Holding::new("shop/cart-1".to_owned(), said).unwrap()
}

fn full(root: &Certificate) -> Holding {
    holding(json!({
        "certificate": {
            "id": "spiffe://cluster.local/ns/shop/sa/cart", "serial": "0a",
            "not_before": 1_796_083_200u64, "not_after": 1_796_169_600u64,
            "chain": root.to_pem(), "signing_root": root.fingerprint().to_string(),
        },
        "roots": root.to_pem(),
        "trust_bundle": {"id": "b".repeat(32), "sequence": 7, "source": "file", "adopted": 1,
                         "problem": "its root does not verify our own certificate", "roots": []},
        "renewal": {"due": 1_796_126_400u64, "last_success": 1_796_083_200u64, "failures": 3,
                    "last_failure": {"at": 1_796_083_100u64, "reason": "authority_unreachable",
                                     "message": "no route", "retry_at": 1_796_083_260u64},
                    "clock_skew_seconds": 31.0},
    }))
}

#[test]
fn people_see_what_the_workload_holds_until_when_and_why_nothing_newer() {
    let root = root();
    let text = full(&root).to_text(now());
    for expected in [
        "pod           shop/cart-1\n",
        "identity      spiffe://cluster.local/ns/shop/sa/cart\n",
        "ECDSA P-256, until 2036-11-28T00:00:00Z (in 3650 days)",
        &format!(
            "trust bundle  {}, sequence 7, from the file\n",
            "b".repeat(32)
        ),
        &format!(
            "{}  (its certificate is below this one)\n",
            root.fingerprint()
        ),
        "  NOT TAKEN   its root does not verify our own certificate\n",
        "next renewal  2026-12-01T12:00:00Z (in 12 hours)\n",
        "last failure  2026-11-30T23:58:20Z authority_unreachable: no route, failed 3 times in a row; \
         again at 2026-12-01T00:01:00Z\n",
        "clock         +31 s beside the CA's\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
}

#[test]
fn a_sidecar_that_has_nothing_yet_or_is_older_is_shown_as_far_as_it_says() {
    let text = holding(json!({"certificate": null})).to_text(now());
    assert!(text.contains("none: it has no certificate yet"), "{text}");
    let root = root();
    let older = holding(json!({
        "certificate": {"id": "spiffe://a/ns/b/sa/c", "chain": root.to_pem()},
        "roots": root.to_pem(),
    }));
    let text = older.to_text(now());
    assert!(
        text.contains("of no known id, of no known sequence"),
        "{text}"
    );
    assert!(text.contains("next renewal  not known"), "{text}");
}

#[test]
fn programs_get_stable_fields_and_libraries_the_chain_and_the_roots() {
    let root = root();
    let holding = full(&root);
    let written = serde_json::to_value(&holding).unwrap();
    assert_eq!(written["schema"], "bulkhead.io/secret/v1");
    assert_eq!(written["chain"][0]["serial"], root.serial());
    assert_eq!(written["chain"][0]["notAfter"], "2036-11-28T00:00:00Z");
    assert_eq!(written["trustBundle"]["sequence"], 7);
    assert_eq!(written["renewal"]["due"], "2026-12-01T12:00:00Z");
    assert_eq!(
        written["renewal"]["lastFailure"]["reason"],
        "authority_unreachable"
    );
    let pem = Certificate::all_from_pem(holding.to_pem(), MAX_PEM).unwrap();
    assert_eq!(pem, [root.clone(), root]);
}
