use bulkhead_core::discovery::{Destination, Route};
use bulkhead_core::protocol::Protocol;

use super::world::{CART, CART_ID, CART_POD, CART_SLICE, PLAIN_POD, World, id};
use crate::object::Kind;

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart-headless, namespace: shop}
spec: {clusterIP: None, ports: [{name: tcp-gossip, port: 7000}, {name: http-web, port: 8080}]}
";
const HEADLESS_SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: h, namespace: shop, labels: {kubernetes.io/service-name: cart-headless}}
addressType: IPv4
ports: [{name: tcp-gossip, port: 7000}, {name: http-web, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: cart-0}, zone: zone-b}
";

#[test]
fn a_cluster_ip_of_each_family_leads_to_the_services_endpoints() {
    let world = World::with(&[CART]);
    for address in ["10.96.0.10:80", "[fd96::10]:80"] {
        let destination = world.destination(address);
        assert_eq!(
            destination.route,
            Route::Endpoints("shop/cart:80".parse().unwrap())
        );
        assert_eq!(destination.service.unwrap().name, "cart");
    }
}

#[test]
fn a_port_speaks_what_its_app_protocol_name_or_number_says() {
    let world = World::with(&[CART]);
    for (port, protocol) in [
        (80, Protocol::Auto),
        (3306, Protocol::Opaque),
        (9000, Protocol::Http2),
    ] {
        let destination = world.destination(&format!("10.96.0.10:{port}"));
        assert_eq!(destination.protocol, protocol, "{port}");
    }
}

#[test]
fn what_nobody_knows_is_unknown_and_so_is_a_port_that_a_service_does_not_have() {
    let world = World::with(&[CART, CART_POD]);
    for address in [
        "192.0.2.1:443",
        "10.96.0.10:81",
        "10.96.0.10:53",
        "10.1.0.9:80",
    ] {
        assert_eq!(
            world.destination(address),
            Destination::default(),
            "{address}"
        );
    }
}

#[test]
fn a_pods_own_address_is_that_pod_in_both_families() {
    let world = World::with(&[CART_POD]);
    for address in ["10.1.0.1:8080", "[fd00::1]:8080"] {
        let endpoint = world.dialled(address);
        assert_eq!(id(&endpoint), Some(CART_ID));
        assert_eq!(endpoint.workload, "cart");
        assert_eq!(endpoint.address.to_string(), address);
    }
    assert_eq!(world.destination("10.1.0.1:9000").protocol, Protocol::Grpc);
}

#[test]
fn a_pod_outside_the_mesh_is_known_and_has_no_identity() {
    let world = World::with(&[PLAIN_POD]);
    assert_eq!(id(&world.dialled("10.1.0.2:80")), None);
}

#[test]
fn a_label_without_a_proxy_promises_nothing() {
    let labelled = CART_POD.replace(
        "initContainers: [{name: bulkhead-proxy}]",
        "initContainers: []",
    );
    assert_eq!(id(&World::with(&[&labelled]).dialled("10.1.0.1:80")), None);
    let istio = CART_POD.replace("bulkhead-proxy", "istio-proxy");
    assert_eq!(
        id(&World::with(&[&istio]).dialled("10.1.0.1:80")),
        Some(CART_ID)
    );
}

#[test]
fn an_endpoint_of_a_headless_service_is_known_by_service_port_and_zone() {
    let world = World::with(&[CART_POD, CART, CART_SLICE, HEADLESS, HEADLESS_SLICE]);
    let gossip = world.destination("10.1.0.1:7000");
    assert_eq!(gossip.service.unwrap().name, "cart-headless");
    assert_eq!(gossip.protocol, Protocol::Opaque);
    let endpoint = world.dialled("10.1.0.1:7000");
    assert_eq!(
        (id(&endpoint), endpoint.zone.as_str()),
        (Some(CART_ID), "zone-b")
    );
    // Both Services have 8080 there; nobody dials the other's pods directly.
    let web = world.destination("10.1.0.1:8080");
    assert_eq!(web.service.unwrap().name, "cart-headless");
}

#[test]
fn a_node_is_never_taken_for_a_pod_that_shares_its_address() {
    let on_host = CART_POD.replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let world = World::with(&[&on_host]);
    assert_eq!(world.destination("10.1.0.1:8080"), Destination::default());
    let world = World::with(&[&on_host, HEADLESS, HEADLESS_SLICE]);
    assert_eq!(id(&world.dialled("10.1.0.1:7000")), None);
}

#[test]
fn an_address_that_was_given_on_belongs_to_the_next_pod() {
    let mut world = World::with(&[CART_POD]);
    world.apply(&PLAIN_POD.replace("10.1.0.2", "10.1.0.1"));
    assert_eq!(id(&world.dialled("10.1.0.1:80")), None);
    world.delete(Kind::Pod, "cart-0");
    assert_eq!(world.dialled("10.1.0.1:80").workload, "plain-0");
}

#[test]
fn a_pod_that_has_finished_has_no_address() {
    let finished = CART_POD.replace("phase: Running", "phase: Succeeded");
    let world = World::with(&[&finished]);
    assert_eq!(world.destination("10.1.0.1:80"), Destination::default());
}

#[test]
fn a_name_for_something_outside_leads_nowhere() {
    let external = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {type: ExternalName, externalName: db.example.org, clusterIP: 10.96.0.11, ports: [{port: 80}]}
";
    let world = World::with(&[external]);
    assert_eq!(world.destination("10.96.0.11:80"), Destination::default());
}

#[test]
fn a_cluster_ip_is_free_when_its_service_is_gone() {
    let mut world = World::with(&[CART]);
    let affected = world.delete(Kind::Service, "cart");
    assert!(affected.addresses.contains(&"10.96.0.10".parse().unwrap()));
    assert_eq!(world.destination("10.96.0.10:80"), Destination::default());
}
