//! A CA that answers with what it should not: the certificate in use stays, the
//! reason is told, and an honest answer ends it.

use bulkhead_pki::authority::Authority as Signer;
use bulkhead_pki::key::{PrivateKey, PublicKey};

use super::logs::Logs;
use super::world::{Ca, DAY, HOUR, Line, MINUTE, World, bundle, trust_domain, workload};
use crate::authority::Grant;

/// Has the CA twist its answers, and sees what becomes of it.
async fn refused(
    outcome: &'static str,
    twist: impl Fn(&Ca, &PublicKey, Grant) -> Grant + Send + 'static,
) {
    let logs = Logs::capture();
    let mut world = World::start().await;
    let serial = world.serial();
    world.ca.twist(twist);
    world.renew();
    world.pass(5 * MINUTE).await;
    let state = world.state();
    let failure = state.last_failure.expect(outcome);
    assert_eq!(failure.reason, outcome, "{}", failure.message);
    assert!(failure.authority_time.is_some(), "both clocks are told");
    let lines = logs.of(outcome);
    assert_eq!(lines.len() as u64, state.failures, "a line for each");
    for line in lines {
        let both = [&line["own_time"], &line["authority_time"]];
        assert!(both.iter().all(|time| time.is_number()), "{line}");
        assert!(line["error"].is_string(), "{line}");
    }
    assert!(state.failures > 1);
    assert_eq!(world.counted(outcome), state.failures);
    assert_eq!(world.serial(), serial, "the old one serves");
    assert!(world.is_ready());
    world.ca.answer();
    world.next_certificate().await;
    assert_eq!(world.state().failures, 0);
}

/// The same roots, and another chain.
fn with_chain(grant: Grant, chain: String) -> Grant {
    let mut grant = grant;
    grant.answer.chain = vec![chain];
    grant
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_another_workload_is_refused() {
    refused("wrong_identity", |ca, key, grant| {
        with_chain(grant, ca.issue(&workload("orders"), key).to_pem())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_key_is_refused() {
    refused("wrong_key", |ca, _, grant| {
        let other = PrivateKey::generate().unwrap();
        let chain = ca.issue(&workload("cart"), other.public_key());
        with_chain(grant, chain.to_pem())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_whose_intermediate_has_expired_is_refused() {
    refused("expired_chain", |ca, key, mut grant| {
        let then = ca.now() - 2 * DAY;
        let root = Signer::new_root(&trust_domain(), 30 * DAY, then).unwrap();
        let intermediate = root.new_intermediate(DAY, then).unwrap();
        let issued = intermediate.issue_svid(&workload("cart"), key, 9 * DAY, then);
        grant.answer.roots = root.certificate().to_pem();
        grant.sequence += 1;
        with_chain(grant, issued.unwrap().to_pem())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_future_is_refused() {
    refused("not_yet_valid", |ca, key, mut grant| {
        let then = ca.now() + HOUR;
        let root = Signer::new_root(&trust_domain(), 30 * DAY, ca.now()).unwrap();
        let issued = root.issue_svid(&workload("cart"), key, DAY, then);
        grant.answer.roots = root.certificate().to_pem();
        grant.sequence += 1;
        with_chain(grant, issued.unwrap().to_pem())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_does_not_end_in_the_bundle_is_refused() {
    refused("untrusted_chain", |ca, key, grant| {
        let line = Line::new(ca.now());
        let now = ca.now();
        let issued = line.intermediate;
        let issued = issued.issue_svid(&workload("cart"), key, DAY, now);
        with_chain(grant, issued.unwrap().to_pem())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bundle_without_the_right_root_is_refused() {
    refused("untrusted_chain", |ca, _, mut grant| {
        grant.answer.roots = bundle(&[&Line::new(ca.now()).root]).to_pem();
        grant.sequence += 1;
        grant
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_without_its_intermediate_is_refused() {
    refused("untrusted_chain", |_, _, grant| {
        let pem = grant.answer.chain.concat();
        let leaf = pem.split_inclusive("-----END CERTIFICATE-----\n").next();
        let leaf = leaf.unwrap().to_owned();
        with_chain(grant, leaf)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn garbage_is_refused() {
    for chain in ["", "no PEM at all", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        refused("malformed_answer", move |_, _, grant| {
            with_chain(grant, chain.to_owned())
        })
        .await;
    }
    for roots in ["", "no PEM at all", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        refused("malformed_answer", move |_, _, mut grant| {
            grant.answer.roots = roots.to_owned();
            grant
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_signing_certificate_is_no_certificate_for_a_workload() {
    refused("malformed_answer", |ca, _, grant| {
        let chain = Line::new(ca.now()).intermediate;
        with_chain(grant, chain.certificate().to_pem())
    })
    .await;
}
