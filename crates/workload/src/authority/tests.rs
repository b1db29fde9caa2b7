//! The call on a real connection: to a CA that is slow, a stranger, or moves to
//! another root, and with files that cannot be used.

mod served;

use std::time::Duration;

use bulkhead_pki::bundle::TrustBundle;
use bulkhead_proto::retry::too_busy;
use tonic::Status;

use super::*;
use served::{DAY, Line, Place, Served, now, trust_domain};

fn bundle(roots: &[&Line]) -> TrustBundle {
    let roots = roots.iter().map(|line| line.root.clone());
    TrustBundle::new(trust_domain(), Roots::new(roots).unwrap())
}

fn ask(holds: Option<TrustBundle>) -> Ask {
    Ask {
        csr: "csr".into(),
        holds: holds.map(|bundle| Holding {
            bundle,
            certificate_expires: UNIX_EPOCH + Duration::from_secs(1234),
        }),
        shows: None,
    }
}

/// Why a call failed, by the metric's label.
async fn outcome(place: &Place, address: &str) -> &'static str {
    let remote = Remote::new(place.settings(address));
    let answered = remote.sign(ask(None)).await;
    answered.map(|_| "success").unwrap_or_else(|error| {
        // What people read names the cause and is one line.
        let text = error.to_string();
        assert!(text.len() > 20 && !text.contains('\n'), "{text:?}");
        error.outcome()
    })
}

#[tokio::test]
async fn the_ca_gets_the_token_and_what_the_workload_holds_and_says_its_version_and_time() {
    let line = Line::new();
    let place = Place::new(&[&line]);
    let served = Served::honest(&line).await;
    let held = bundle(&[&line]);
    let remote = Remote::new(place.settings(&served.address));
    let grant = remote.sign(ask(Some(held.clone()))).await.unwrap();
    assert_eq!(grant.sequence, 7);
    assert_eq!(grant.answer.chain, ["leaf"]);
    let authority_now = grant.authority_now.unwrap();
    assert!(authority_now <= now() && now() < authority_now + DAY);
    let heard = served.heard();
    let said = |name| heard.get(name).unwrap().to_str().unwrap();
    assert_eq!(said("authorization"), "Bearer a-token");
    assert_eq!(said("bulkhead-trust-bundle"), held.id().to_string());
    assert_eq!(said("bulkhead-certificate-expires"), "1234");
    assert!(heard.contains_key("grpc-timeout"));

    remote.sign(ask(None)).await.unwrap();
    let heard = served.heard();
    assert!(!heard.contains_key("bulkhead-trust-bundle"));
    assert!(!heard.contains_key("bulkhead-certificate-expires"));
}

#[tokio::test]
async fn a_ca_that_is_somebody_else_gets_no_token() {
    let (ours, theirs) = (Line::new(), Line::new());
    let place = Place::new(&[&ours]);
    let served = Served::honest(&theirs).await;
    assert_eq!(
        outcome(&place, &served.address).await,
        "authority_unverified"
    );
    let elsewhere = Served::named(&ours, "elsewhere.test").await;
    let outcome = outcome(&place, &elsewhere.address).await;
    assert_eq!(outcome, "authority_unverified");
    assert!(served.heard().is_empty() && elsewhere.heard().is_empty());
}

#[tokio::test]
async fn each_refusal_has_its_reason_and_the_cas_time() {
    for (refusal, expected) in [
        (Status::unauthenticated("no"), "authority_refused"),
        (Status::permission_denied("no"), "authority_refused"),
        (Status::unavailable("not now"), "authority_unavailable"),
        (Status::deadline_exceeded("slow"), "authority_timeout"),
        (too_busy("later", DAY), "authority_busy"),
    ] {
        let line = Line::new();
        let place = Place::new(&[&line]);
        let served = Served::refusing(&line, refusal).await;
        let remote = Remote::new(place.settings(&served.address));
        let error = remote.sign(ask(None)).await.err().unwrap();
        assert_eq!(error.outcome(), expected);
        assert!(error.authority_now().is_some(), "{error}");
        let is_busy = expected == "authority_busy";
        assert_eq!(error.delay(), is_busy.then_some(DAY));
    }
}

#[tokio::test]
async fn an_answer_without_end_or_without_content_is_no_answer() {
    let line = Line::new();
    let place = Place::new(&[&line]);
    let endless = Served::answering(&line, vec!["x".repeat(3 * 1024 * 1024); 4]).await;
    assert_eq!(outcome(&place, &endless.address).await, "malformed_answer");
    for parts in [vec![], vec!["only one".to_owned()]] {
        let empty = Served::answering(&line, parts).await;
        assert_eq!(outcome(&place, &empty.address).await, "malformed_answer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_stalls_at_any_point_is_given_up() {
    let line = Line::new();
    let place = Place::new(&[&line]);
    // Nobody accepts; somebody accepts and says nothing; the call is never answered.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    assert_eq!(outcome(&place, &address).await, "authority_timeout");
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    assert_eq!(outcome(&place, &address).await, "authority_timeout");
    silent.abort();
    let stalling = Served::stalling(&line).await;
    assert_eq!(
        outcome(&place, &stalling.address).await,
        "authority_timeout"
    );
}

#[tokio::test]
async fn a_ca_that_is_not_there_or_hangs_up_is_unreachable() {
    let line = Line::new();
    let place = Place::new(&[&line]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hanging_up = tokio::spawn(async move { drop(listener.accept().await) });
    assert_eq!(outcome(&place, &address).await, "authority_unreachable");
    hanging_up.await.unwrap();
    assert_eq!(outcome(&place, &address).await, "authority_unreachable");
    for nonsense in ["", "a b:1", "ca.test:port"] {
        assert_eq!(
            outcome(&place, nonsense).await,
            "local_failure",
            "{nonsense:?}"
        );
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_used_is_told_from_a_ca_that_refuses() {
    let line = Line::new();
    let served = Served::honest(&line).await;
    let long = "t".repeat(128 * 1024);
    let too_long = "t".repeat(2 * 1024 * 1024);
    for token in ["", "\n", "täken", "to\nken", &long, &too_long] {
        let place = Place::new(&[&line]);
        place.write_token(token);
        assert_eq!(outcome(&place, &served.address).await, "token_unusable");
    }
    let place = Place::new(&[&line]);
    place.remove_token();
    assert_eq!(outcome(&place, &served.address).await, "token_unusable");
    assert!(served.heard().is_empty());
    place.write_token("a-token");
    assert_eq!(outcome(&place, &served.address).await, "success");
}

#[tokio::test]
async fn roots_that_a_full_disk_cut_stop_only_who_has_none_of_its_own() {
    let line = Line::new();
    let served = Served::honest(&line).await;
    let place = Place::new(&[&line]);
    let whole = line.root.to_pem();
    for text in ["", &whole[..whole.len() / 2], "not PEM"] {
        place.write_roots(text);
        assert_eq!(outcome(&place, &served.address).await, "roots_unusable");
        let remote = Remote::new(place.settings(&served.address));
        let held = bundle(&[&line]);
        assert!(remote.sign(ask(Some(held))).await.is_ok(), "{text:?}");
    }
    place.write_roots(&whole);
    assert_eq!(outcome(&place, &served.address).await, "success");
}

#[tokio::test]
async fn a_ca_whose_own_certificate_moves_to_another_root_is_verified_all_along() {
    let (old, new) = (Line::new(), Line::new());
    let place = Place::new(&[&old]);
    let (before, after) = (Served::honest(&old).await, Served::honest(&new).await);
    let sign = async |address: &str, holds| {
        let remote = Remote::new(place.settings(address));
        remote.sign(ask(holds)).await.is_ok()
    };
    // The bundle has the new root first, from an answer of the CA.
    assert!(sign(&before.address, Some(bundle(&[&old, &new]))).await);
    assert!(sign(&after.address, Some(bundle(&[&old, &new]))).await);
    assert!(!sign(&after.address, Some(bundle(&[&old]))).await);
    // Then the file has it, and a workload that holds the old ones alone.
    place.write_lines(&[&old, &new]);
    assert!(sign(&after.address, Some(bundle(&[&old]))).await);
    // Then neither has the old one.
    place.write_lines(&[&new]);
    assert!(sign(&after.address, Some(bundle(&[&new]))).await);
    assert!(!sign(&before.address, Some(bundle(&[&new]))).await);
}

#[tokio::test]
async fn a_workload_whose_token_is_gone_shows_its_certificate_to_a_ca_that_asks() {
    let line = Line::new();
    let place = Place::new(&[&line]);
    place.remove_token();
    let asking = || Ask {
        shows: Some(line.credentials()),
        ..ask(None)
    };
    let served = Served::asking(&line).await;
    let remote = Remote::new(place.settings(&served.address));
    remote.sign(asking()).await.unwrap();
    assert!(!served.heard().contains_key("authorization"));
    let id = place.settings(&served.address).id;
    assert_eq!(served.shown(&line), Some(id));

    // A CA that wants a token says so, and what is wrong is that there is none.
    let refusing = Served::refusing(&line, Status::unauthenticated("no")).await;
    let remote = Remote::new(place.settings(&refusing.address));
    let refused = remote.sign(asking()).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.outcome(), "token_unusable");
}
