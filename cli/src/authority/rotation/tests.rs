//! What is decided, and what is said of how far it is, for every state that a
//! person may find.

use bulkhead_crds::certificate_authority::{CertificateAuthoritySpec, NAME};
use serde_json::{Value, json};

use super::*;

fn now() -> SystemTime {
    moment::at(1_796_083_200)
}

/// An object whose CA has seen its spec.
fn object(root: u32, target: u32, phase: &str, roots: &[(u32, &str)]) -> CertificateAuthority {
    let authorities: Vec<Value> = roots
        .iter()
        .map(|(generation, state)| {
            json!({"kind": "root", "generation": generation, "state": state, "fingerprint": "f"})
        })
        .collect();
    let mut object = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
    object.metadata.generation = Some(3);
    object.status = serde_json::from_value(json!({
        "observedGeneration": 3, "phase": phase, "message": "as it says",
        "rootGeneration": root, "targetGeneration": target, "authorities": authorities,
        "trustBundle": {"id": "new", "sequence": 2, "roots": roots.len()},
        "proxies": {"total": 3, "holding": 2, "renewed": 1, "summary": "2/3", "bundle": "new",
                    "signingRoot": "f", "at": "2026-12-01T00:00:00Z",
                    "missing": [{"pod": "shop/cart", "reason": "it lags"}]},
    }))
    .unwrap();
    object
}

fn settled() -> CertificateAuthority {
    object(4, 4, "Settled", &[(3, "retired"), (4, "active")])
}

fn publishing() -> CertificateAuthority {
    object(4, 5, "Publishing", &[(4, "active"), (5, "published")])
}

fn renewing() -> CertificateAuthority {
    object(5, 5, "Renewing", &[(4, "published"), (5, "active")])
}

fn goal(root: u32) -> Goal {
    Goal {
        root,
        is_undo: false,
    }
}

fn undo(root: u32) -> Goal {
    Goal {
        root,
        is_undo: true,
    }
}

#[test]
fn a_rotation_is_started_once_however_often_it_is_asked_for() {
    assert_eq!(decide(&settled(), Wish::Rotate), Decision::Order(goal(5)));
    // Asked for, and the CA has not looked yet.
    let mut asked = settled();
    asked.spec.root_generation = Some(5);
    asked.metadata.generation = Some(4);
    assert_eq!(decide(&asked, Wish::Rotate), Decision::Follow(goal(5)));
    assert_eq!(
        decide(&publishing(), Wish::Rotate),
        Decision::Follow(goal(5))
    );
    assert_eq!(decide(&renewing(), Wish::Rotate), Decision::Follow(goal(5)));
}

#[test]
fn a_root_that_was_retired_is_never_ordered_again() {
    let undone = object(4, 4, "Settled", &[(4, "active"), (5, "retired")]);
    assert_eq!(decide(&undone, Wish::Rotate), Decision::Order(goal(6)));
}

#[test]
fn a_rotation_can_be_undone_until_the_old_root_is_retired() {
    assert_eq!(decide(&publishing(), Wish::Undo), Decision::Order(undo(4)));
    assert_eq!(decide(&renewing(), Wish::Undo), Decision::Order(undo(4)));
    let going_back = object(5, 4, "Publishing", &[(4, "published"), (5, "active")]);
    assert_eq!(decide(&going_back, Wish::Undo), Decision::Follow(undo(4)));
    let Decision::Impossible(why) = decide(&settled(), Wish::Undo) else {
        panic!("there is nothing to undo");
    };
    assert!(why.contains("nothing to undo"), "{why}");
}

#[test]
fn an_upstreams_other_roots_are_no_rotation() {
    let listed = object(4, 4, "Settled", &[(3, "published"), (4, "active")]);
    assert_eq!(decide(&listed, Wish::Rotate), Decision::Order(goal(5)));
    assert!(matches!(
        decide(&listed, Wish::Undo),
        Decision::Impossible(_)
    ));
    let progress = Progress::of(&listed, goal(4), now()).unwrap();
    assert_eq!(progress.step, Step::Done);
}

#[test]
fn a_ca_that_has_said_nothing_is_told_nothing() {
    let silent = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
    assert!(matches!(
        decide(&silent, Wish::Rotate),
        Decision::Impossible(_)
    ));
    assert!(matches!(
        decide(&silent, Wish::Undo),
        Decision::Impossible(_)
    ));
}

#[test]
fn each_phase_is_a_step_on_the_way() {
    let step = |object: &CertificateAuthority| Progress::of(object, goal(5), now()).unwrap().step;
    let mut asked = settled();
    asked.spec.root_generation = Some(5);
    asked.metadata.generation = Some(4);
    assert_eq!(step(&asked), Step::Asked);
    assert_eq!(step(&publishing()), Step::Publishing);
    let switching = object(4, 5, "Switching", &[(4, "active"), (5, "published")]);
    assert_eq!(step(&switching), Step::Switching);
    assert_eq!(step(&renewing()), Step::Renewing);
    let retiring = object(5, 5, "Retiring", &[(4, "published"), (5, "active")]);
    assert_eq!(step(&retiring), Step::Retiring);
    let done = object(5, 5, "Settled", &[(4, "retired"), (5, "active")]);
    assert_eq!(step(&done), Step::Done);
}

#[test]
fn what_is_blocked_names_who_lacks_the_root_unless_that_was_permitted() {
    let mut blocked = object(4, 5, "Blocked", &[(4, "active"), (5, "published")]);
    let Err(Obstacle::Blocked { why, proxies }) = Progress::of(&blocked, goal(5), now()) else {
        panic!("it is blocked");
    };
    assert_eq!(why, "as it says");
    assert_eq!(proxies.lacking(), 1);
    assert_eq!(proxies.missing()[0].pod, "shop/cart");
    blocked.spec.force_generation = Some(5);
    let progress = Progress::of(&blocked, goal(5), now()).unwrap();
    assert_eq!(progress.step, Step::Asked);
}

#[test]
fn whoever_follows_learns_that_somebody_wants_another_root() {
    let mut other = publishing();
    other.spec.root_generation = Some(4);
    other.metadata.generation = Some(4);
    let outcome = Progress::of(&other, goal(5), now());
    assert_eq!(outcome, Err(Obstacle::Superseded(4)));
    let undone = object(4, 4, "Settled", &[(4, "active"), (5, "retired")]);
    let outcome = Progress::of(&undone, goal(5), now());
    assert_eq!(outcome, Err(Obstacle::Gone));
}

#[test]
fn an_order_that_the_ca_has_seen_and_not_acted_on_yet_is_waited_for() {
    // It notes which spec it saw a moment before its own state follows.
    let mut asked = settled();
    asked.spec.root_generation = Some(5);
    assert_eq!(decide(&asked, Wish::Rotate), Decision::Follow(goal(5)));
    assert_eq!(decide(&asked, Wish::Undo), Decision::Order(undo(4)));
    let progress = Progress::of(&asked, goal(5), now()).unwrap();
    assert_eq!(progress.step, Step::Asked);
    // What was in the way of the root before is not in the way back.
    let mut back = object(4, 5, "Blocked", &[(4, "active"), (5, "published")]);
    back.spec.root_generation = Some(4);
    let progress = Progress::of(&back, undo(4), now()).unwrap();
    assert_eq!(progress.step, Step::Asked);
}

#[test]
fn an_order_that_cannot_be_is_told_with_the_cas_reason() {
    let mut bad = object(4, 4, "Blocked", &[(4, "active")]);
    bad.spec.root_generation = Some(17);
    let outcome = Progress::of(&bad, goal(17), now());
    assert!(
        matches!(outcome, Err(Obstacle::Blocked { .. })),
        "{outcome:?}"
    );
    assert_eq!(decide(&bad, Wish::Rotate), Decision::Order(goal(5)));
}

#[test]
fn what_control_says_of_another_bundle_or_said_long_ago_is_not_taken_for_now() {
    let mut object = publishing();
    let later = now() + Duration::from_secs(600);
    let Known::Said { stale_since, .. } = Known::of(&status(&object), later) else {
        panic!("it was said");
    };
    assert_eq!(stale_since.as_deref(), Some("10 minutes ago"));
    object
        .status
        .as_mut()
        .unwrap()
        .proxies
        .as_mut()
        .unwrap()
        .bundle = "old".to_owned();
    assert_eq!(Known::of(&status(&object), now()), Known::Nothing);
}

#[test]
fn figures_of_the_root_before_are_not_taken_for_those_of_the_one_that_signs_now() {
    let mut switched = renewing();
    let mut status = switched.status.take().unwrap();
    for authority in &mut status.authorities {
        authority.fingerprint = format!("root {}", authority.generation);
    }
    let mut proxies = status.proxies.take().unwrap();
    proxies.renewed = 3;
    for (compared_with, renewed) in [("root 4", 0), ("root 5", 3)] {
        proxies.signing_root = compared_with.to_owned();
        status.proxies = Some(proxies.clone());
        let Known::Said { renewed: said, .. } = Known::of(&status, now()) else {
            panic!("control says something");
        };
        assert_eq!(said, renewed, "{compared_with}");
    }
}

#[test]
fn a_proxy_that_does_not_renew_is_told_of_and_starts_no_other_rotation() {
    let mut stuck = object(5, 5, "Blocked", &[(4, "published"), (5, "active")]);
    stuck.spec.root_generation = Some(5);
    assert_eq!(decide(&stuck, Wish::Rotate), Decision::Follow(goal(5)));
    assert_eq!(decide(&stuck, Wish::Undo), Decision::Order(undo(4)));
    let outcome = Progress::of(&stuck, goal(5), now());
    let Err(Obstacle::Blocked { proxies, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(proxies.not_renewed(), 2);
    stuck.spec.force_generation = Some(5);
    let progress = Progress::of(&stuck, goal(5), now()).unwrap();
    assert_eq!((progress.step, progress.behind()), (Step::Renewing, 2));
}
