//! Connections that the pod's processes open.

use std::net::UdpSocket;
use std::time::Duration;

use bulkhead_tests::network::{Network, User};

use crate::pod::{APPLICATION, Answer, FAR_V4, FAR_V6, OUTSIDE_V4, OUTSIDE_V6, PROXY, Pod};

#[test]
fn a_connection_of_the_application_goes_to_the_proxy_which_learns_where_it_was_going() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for user in [APPLICATION, User::Root, User::Id(65_532)] {
        for to in ["198.51.100.1:80", "[2001:db8:f::1]:80", "203.0.113.9:9"] {
            assert_eq!(pod.call(user, to), Answer::by("proxy", to), "{user:?}");
        }
    }
}

#[test]
fn what_the_proxy_sends_goes_out() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for to in ["198.51.100.1:80", "[2001:db8:f::1]:80"] {
        assert_eq!(pod.call(PROXY, to), Answer::by("outside", to));
    }
}

#[test]
fn the_proxy_may_run_as_another_user() {
    let pod = Pod::start(&[80]);
    pod.init(&[("BULKHEAD_REDIRECT_PROXY_UID", "4444")]);
    let to = format!("{FAR_V4}:80");
    assert_eq!(pod.call(User::Id(4444), &to), Answer::by("outside", &to));
    assert_eq!(pod.call(PROXY, &to), Answer::by("proxy", &to));
}

#[test]
fn an_excluded_port_or_address_is_reached_directly() {
    let pod = Pod::start(&[80, 25, 3306]);
    let excluded = format!("{FAR_V4}/32,{FAR_V6}/128");
    pod.init(&[
        ("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_PORTS", "25,3306"),
        ("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_CIDRS", &excluded),
    ]);
    for (address, port, who) in [
        (OUTSIDE_V4.to_owned(), 80, "proxy"),
        (OUTSIDE_V4.to_owned(), 25, "outside"),
        (format!("[{OUTSIDE_V6}]"), 3306, "outside"),
        (format!("[{OUTSIDE_V6}]"), 80, "proxy"),
        (FAR_V4.to_owned(), 80, "outside"),
        (format!("[{FAR_V6}]"), 80, "outside"),
    ] {
        let to = format!("{address}:{port}");
        assert_eq!(pod.call(APPLICATION, &to), Answer::by(who, &to));
    }
}

#[test]
fn where_addresses_are_included_only_they_and_the_included_ports_go_to_the_proxy() {
    let pod = Pod::start(&[80, 5432]);
    pod.init(&[
        (
            "BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_CIDRS",
            "198.51.100.0/24,2001:db8:f::/48",
        ),
        ("BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_PORTS", "5432"),
    ]);
    for (to, who) in [
        ("198.51.100.1:80", "proxy"),
        ("[2001:db8:f::1]:80", "proxy"),
        ("192.0.2.20:80", "outside"),
        ("[2001:db8::20]:80", "outside"),
        ("192.0.2.20:5432", "proxy"),
        ("[2001:db8::20]:5432", "proxy"),
    ] {
        assert_eq!(pod.call(APPLICATION, to), Answer::by(who, to));
    }
}

#[test]
fn names_are_looked_up_past_the_proxy_by_udp_and_by_tcp() {
    let pod = Pod::start(&[53]);
    pod.init(&[]);
    let dns = format!("{FAR_V4}:53");
    assert_eq!(pod.call(APPLICATION, &dns), Answer::by("outside", &dns));
    for address in ["198.51.100.1:53", "[2001:db8:f::1]:53"] {
        assert_eq!(echo(&pod, address), b"which address has the name?");
    }
}

#[test]
fn names_are_looked_up_through_the_proxy_where_the_port_is_included() {
    let pod = Pod::start(&[53]);
    pod.init(&[("BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_PORTS", "53")]);
    let dns = format!("{FAR_V4}:53");
    assert_eq!(pod.call(APPLICATION, &dns), Answer::by("proxy", &dns));
}

#[test]
fn datagrams_are_left_alone() {
    let pod = Pod::start(&[]);
    pod.init(&[]);
    for address in ["198.51.100.1:15001", "[2001:db8:f::1]:443"] {
        assert_eq!(echo(&pod, address), b"which address has the name?");
    }
}

/// Sends a datagram from the pod to a server outside, which sends it back.
fn echo(pod: &Pod, address: &str) -> Vec<u8> {
    let bind = |network: &Network, user, address: &str| {
        let socket = network.within(user, || UdpSocket::bind(address)).unwrap();
        let limit = Some(Duration::from_secs(5));
        socket.set_read_timeout(limit).unwrap();
        socket
    };
    let server = bind(&pod.outside, User::Root, address);
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let client = bind(&pod.network, APPLICATION, any);
    client.connect(address).unwrap();
    client.send(b"which address has the name?").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], from).unwrap();
    let length = client.recv(&mut buffer).unwrap();
    buffer[..length].to_vec()
}
