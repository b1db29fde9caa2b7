use super::world::{CART, CART_ID, CART_POD, CART_SLICE, PLAIN_POD, World, id};
use crate::object::{Change, Key, Kind, Listed};

fn world() -> World {
    World::with(&[CART, CART_SLICE, CART_POD, PLAIN_POD])
}

#[test]
fn a_named_port_is_where_the_slice_says() {
    let world = world();
    assert_eq!(
        world.ready("shop/cart:80"),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
    assert_eq!(
        world.ready("shop/cart:9000"),
        ["10.1.0.1:9000", "10.1.0.2:9000"]
    );
    assert!(world.ready("shop/cart:3306").is_empty());
}

#[test]
fn each_endpoint_is_in_the_mesh_or_not() {
    let endpoints = world().endpoints("shop/cart:80").unwrap().endpoints;
    assert_eq!(id(&endpoints[0]), Some(CART_ID));
    assert_eq!(
        (endpoints[0].zone.as_str(), endpoints[0].workload.as_str()),
        ("zone-a", "cart")
    );
    assert_eq!(id(&endpoints[1]), None);
}

#[test]
fn an_endpoint_whose_pod_has_another_address_has_no_identity() {
    let mut world = world();
    world.apply(&CART_POD.replace("10.1.0.1", "10.1.0.7"));
    let endpoints = world.endpoints("shop/cart:80").unwrap().endpoints;
    assert_eq!(id(&endpoints[0]), None);
}

#[test]
fn there_is_no_answer_for_what_does_not_exist() {
    let world = world();
    assert_eq!(world.endpoints("shop/cart:81"), None);
    assert_eq!(world.endpoints("bank/cart:80"), None);
}

#[test]
fn an_endpoint_that_leaves_takes_no_new_connections_but_is_there_if_there_is_no_other() {
    let mut world = world();
    let leaving = CART_SLICE.replace(
        "{ready: true, serving: true, terminating: false}",
        "{ready: false, serving: true, terminating: true}",
    );
    let affected = world.apply(&leaving);
    assert!(affected.services.contains(&Key::new("shop", "cart")));
    assert_eq!(world.ready("shop/cart:80"), ["10.1.0.2:8080"]);
    assert_eq!(world.endpoints("shop/cart:80").unwrap().endpoints.len(), 2);
}

#[test]
fn an_endpoint_that_is_not_ready_and_stays_is_not_there() {
    let mut world = world();
    let unready = CART_SLICE.replace(
        "{ready: true, serving: true, terminating: false}",
        "{ready: false, serving: false, terminating: false}",
    );
    world.apply(&unready);
    let endpoints = world.endpoints("shop/cart:80").unwrap().endpoints;
    assert_eq!(endpoints.len(), 1);
}

#[test]
fn a_slice_that_is_gone_takes_its_endpoints_along() {
    let mut world = world();
    let affected = world.delete(Kind::EndpointSlice, "cart-abc");
    assert!(affected.addresses.contains(&"10.1.0.1".parse().unwrap()));
    assert!(world.ready("shop/cart:80").is_empty());
}

#[test]
fn an_address_in_two_slices_is_one_endpoint_and_the_ready_one_counts() {
    let mut world = world();
    let other = CART_SLICE.replace("cart-abc", "cart-xyz").replace(
        "ready: true, serving: true, terminating: false",
        "ready: false, serving: true, terminating: true",
    );
    world.apply(&other);
    assert_eq!(
        world.ready("shop/cart:80"),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
    assert_eq!(world.endpoints("shop/cart:80").unwrap().endpoints.len(), 2);
}

#[test]
fn a_slice_that_is_handed_to_another_service_leaves_the_first() {
    let mut world = world();
    world.apply(&CART_SLICE.replace("service-name: cart}", "service-name: other}"));
    assert!(world.ready("shop/cart:80").is_empty());
}

#[test]
fn names_and_udp_are_no_endpoints() {
    let fqdn = CART_SLICE
        .replace("addressType: IPv4", "addressType: FQDN")
        .replace("10.1.0.1", "db.example.org");
    let udp = CART_SLICE.replace(
        "{name: http, port: 8080, protocol: TCP}",
        "{name: http, port: 8080, protocol: UDP}",
    );
    let world_of = |slice: &str| World::with(&[CART, slice]);
    assert_eq!(world_of(&fqdn).ready("shop/cart:80"), ["10.1.0.2:8080"]);
    assert!(world_of(&udp).ready("shop/cart:80").is_empty());
}

#[test]
fn a_pod_that_joins_the_mesh_changes_the_services_that_have_it() {
    let mut world = World::with(&[CART, CART_SLICE]);
    let affected = world.apply(CART_POD);
    assert!(affected.services.contains(&Key::new("shop", "cart")));
    assert!(affected.pods.contains(&Key::new("shop", "cart-0")));
}

#[test]
fn what_is_the_same_affects_nobody() {
    let mut world = world();
    for manifest in [CART, CART_SLICE, CART_POD, PLAIN_POD] {
        assert!(world.apply(manifest).is_empty(), "{manifest}");
    }
}

#[test]
fn a_new_list_drops_what_is_not_in_it() {
    let mut world = world();
    let affected = world
        .index
        .apply(Change::Replaced(Kind::EndpointSlice, Listed::default()));
    assert!(affected.services.contains(&Key::new("shop", "cart")));
    assert!(world.ready("shop/cart:80").is_empty());
    assert_eq!(world.index.count(Kind::Pod), 2);
}
