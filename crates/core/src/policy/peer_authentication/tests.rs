use std::time::{Duration, UNIX_EPOCH};

use MtlsMode::{Disable, Permissive, Strict};

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A policy in this namespace; written later than all that were named with a
/// lower number.
fn policy(namespace: &str, number: u64, mode: Option<MtlsMode>) -> PeerAuthentication {
    PeerAuthentication {
        namespace: namespace.into(),
        name: format!("p{number}"),
        created: UNIX_EPOCH + Duration::from_secs(number),
        selector: BTreeMap::new(),
        mode,
        port_modes: BTreeMap::new(),
    }
}

fn for_cart(mut policy: PeerAuthentication) -> PeerAuthentication {
    policy.selector = labels(&[("app", "cart")]);
    policy
}

fn with_port(
    mut policy: PeerAuthentication,
    port: u16,
    mode: Option<MtlsMode>,
) -> PeerAuthentication {
    policy.port_modes.insert(port, mode);
    policy
}

/// What cart in shop accepts, with nothing said by annotations.
fn cart(policies: &[PeerAuthentication]) -> InboundPolicy {
    over(InboundPolicy::default(), policies)
}

fn over(base: InboundPolicy, policies: &[PeerAuthentication]) -> InboundPolicy {
    let roots = ["bulkhead-system", "istio-system"]
        .map(str::to_owned)
        .into();
    let workload = Workload {
        namespace: "shop",
        labels: &labels(&[("app", "cart"), ("version", "v1")]),
    };
    effective(workload, base, &roots, policies)
}

#[test]
fn the_most_specific_level_that_says_something_decides() {
    let mesh = |mode| policy("istio-system", 1, mode);
    let namespace = |mode| policy("shop", 2, mode);
    let workload = |mode| for_cart(policy("shop", 3, mode));
    for (policies, expected) in [
        (vec![], Permissive),
        (vec![mesh(Some(Strict))], Strict),
        (
            vec![mesh(Some(Strict)), namespace(Some(Permissive))],
            Permissive,
        ),
        (vec![mesh(Some(Strict)), namespace(None)], Strict),
        (vec![mesh(Some(Strict)), workload(Some(Disable))], Disable),
        (
            vec![
                mesh(Some(Strict)),
                namespace(Some(Disable)),
                workload(Some(Permissive)),
            ],
            Permissive,
        ),
        (
            vec![mesh(Some(Strict)), namespace(Some(Disable)), workload(None)],
            Disable,
        ),
        (
            vec![mesh(None), namespace(None), workload(None)],
            Permissive,
        ),
        (vec![workload(Some(Strict)), mesh(Some(Disable))], Strict),
    ] {
        assert_eq!(cart(&policies).mode, expected, "{policies:#?}");
    }
}

#[test]
fn policies_for_somebody_else_do_nothing() {
    let other_namespace = policy("bank", 1, Some(Strict));
    let mut other_workload = policy("shop", 2, Some(Strict));
    other_workload.selector = labels(&[("app", "cart"), ("version", "v2")]);
    let selector_in_root = for_cart(policy("istio-system", 3, Some(Strict)));
    for policy in [other_namespace, other_workload, selector_in_root] {
        assert_eq!(
            cart(std::slice::from_ref(&policy)).mode,
            Permissive,
            "{policy:?}"
        );
    }
}

#[test]
fn of_several_at_one_level_the_oldest_counts() {
    let old = policy("shop", 1, Some(Strict));
    let new = policy("shop", 2, Some(Disable));
    assert_eq!(cart(&[old.clone(), new.clone()]).mode, Strict);
    assert_eq!(cart(&[new, old]).mode, Strict);
    let (istio, own) = (
        policy("istio-system", 1, Some(Strict)),
        policy("bulkhead-system", 2, Some(Disable)),
    );
    assert_eq!(cart(&[own, istio]).mode, Strict);
}

#[test]
fn a_port_may_differ_and_unset_ports_are_as_the_workload() {
    let policy = with_port(
        with_port(
            for_cart(policy("shop", 1, Some(Strict))),
            8080,
            Some(Disable),
        ),
        9090,
        None,
    );
    let found = cart(&[policy]);
    let modes = [8080, 9090, 7070].map(|port| found.mode(port));
    assert_eq!(modes, [Disable, Strict, Strict]);
}

#[test]
fn unset_ports_are_as_the_workload_even_where_that_inherits() {
    let mesh = policy("istio-system", 1, Some(Strict));
    let workload = with_port(for_cart(policy("shop", 2, None)), 8080, Some(Permissive));
    let workload = with_port(workload, 9090, None);
    let found = cart(&[mesh, workload]);
    let modes = [8080, 9090, 7070].map(|port| found.mode(port));
    assert_eq!(modes, [Permissive, Strict, Strict]);
}

#[test]
fn ports_without_a_selector_mean_nothing() {
    let namespace = with_port(policy("shop", 1, Some(Strict)), 8080, Some(Disable));
    assert_eq!(cart(&[namespace]).mode(8080), Strict);
}

#[test]
fn a_policy_that_sets_a_mode_silences_annotations() {
    let annotations = InboundPolicy {
        name: "annotations".into(),
        mode: Permissive,
        port_modes: [(8080, Disable)].into(),
    };
    let strict = over(
        annotations.clone(),
        &[policy("istio-system", 1, Some(Strict))],
    );
    assert_eq!((strict.mode(80), strict.mode(8080)), (Strict, Strict));
    assert_eq!(strict.name, "PeerAuthentication istio-system/p1");
    let unset = over(annotations.clone(), &[policy("shop", 1, None)]);
    assert_eq!(unset, annotations);
}

#[test]
fn the_rule_is_named_by_the_most_specific_that_contributed() {
    let mesh = policy("istio-system", 1, Some(Strict));
    let namespace = policy("shop", 2, None);
    let workload = with_port(for_cart(policy("shop", 3, None)), 8080, Some(Permissive));
    let name = |policies: &[PeerAuthentication]| cart(policies).name;
    assert_eq!(
        name(&[mesh.clone(), namespace.clone()]),
        "PeerAuthentication istio-system/p1"
    );
    assert_eq!(
        name(&[mesh, namespace, workload]),
        "PeerAuthentication shop/p3"
    );
}
