use bulkhead_core::policy::MtlsMode::{Disable, Permissive, Strict};

use super::world::{CART, CART_ID, CART_POD, CART_SLICE, World, id};
use crate::object::Kind;

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

fn annotated(annotations: &str) -> String {
    CART_POD.replace(
        "  namespace: shop\n",
        &format!("  namespace: shop\n  annotations: {annotations}\n"),
    )
}

fn namespace(annotations: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {annotations}}}")
}

#[test]
fn where_nobody_says_anything_the_installation_decides() {
    assert_eq!(World::with(&[CART_POD]).mode(80), Permissive);
}

#[test]
fn the_pods_annotation_counts_more_than_its_namespaces() {
    let strict = namespace("{bulkhead.io/mtls-mode: STRICT}");
    assert_eq!(World::with(&[&strict, CART_POD]).mode(80), Strict);
    let pod = annotated("{bulkhead.io/mtls-mode: DISABLE}");
    assert_eq!(World::with(&[&strict, &pod]).mode(80), Disable);
}

#[test]
fn a_namespaces_annotation_counts_from_the_moment_it_is_written() {
    let mut world = World::with(&[CART_POD]);
    let affected = world.apply(&namespace("{bulkhead.io/mtls-mode: STRICT}"));
    assert!(affected.everything);
    assert_eq!(world.mode(80), Strict);
    world.apply(&namespace("{}"));
    assert_eq!(world.mode(80), Permissive);
}

#[test]
fn single_ports_may_differ() {
    let pod = annotated(
        "{bulkhead.io/mtls-mode: STRICT, bulkhead.io/port-mtls-modes: '9090=PERMISSIVE'}",
    );
    let world = World::with(&[&pod]);
    assert_eq!((world.mode(80), world.mode(9090)), (Strict, Permissive));
}

#[test]
fn an_annotation_that_cannot_be_used_counts_as_absent() {
    let strict = namespace("{bulkhead.io/mtls-mode: STRICT}");
    let pod = annotated("{bulkhead.io/mtls-mode: maybe}");
    assert_eq!(World::with(&[&strict, &pod]).mode(80), Strict);
}

#[test]
fn a_peer_authentication_is_above_annotations_and_gone_with_its_object() {
    let pod = annotated("{bulkhead.io/mtls-mode: PERMISSIVE}");
    let mut world = World::with(&[&pod, STRICT]);
    assert_eq!(world.mode(80), Strict);
    let pod_name = "shop/cart-0".parse().unwrap();
    let policy = world.index.inbound(&pod_name).unwrap().policy;
    assert_eq!(policy.name, "PeerAuthentication shop/default");
    assert!(world.delete(Kind::PeerAuthentication, "default").everything);
    assert_eq!(world.mode(80), Permissive);
}

#[test]
fn a_policy_of_another_namespace_does_nothing_and_one_of_a_root_namespace_everything() {
    let elsewhere = STRICT.replace("namespace: shop", "namespace: bank");
    assert_eq!(World::with(&[CART_POD, &elsewhere]).mode(80), Permissive);
    for root in ["istio-system", "bulkhead-system"] {
        let mesh = STRICT.replace("namespace: shop", &format!("namespace: {root}"));
        assert_eq!(World::with(&[CART_POD, &mesh]).mode(80), Strict);
    }
}

#[test]
fn clients_speak_plaintext_to_a_port_where_mtls_is_off() {
    let port = "
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  portLevelMtls: {'8080': {mode: DISABLE}}
";
    let world = World::with(&[CART_POD, CART, CART_SLICE, port]);
    let at = |name: &str| world.endpoints(name).unwrap().endpoints;
    assert_eq!(id(&at("shop/cart:80")[0]), None);
    assert_eq!(id(&at("shop/cart:9000")[0]), Some(CART_ID));
}

#[test]
fn of_a_pod_that_is_not_there_nothing_is_said() {
    let world = World::with(&[CART_POD]);
    assert_eq!(world.index.inbound(&"shop/cart-1".parse().unwrap()), None);
}
