//! Connections that come from outside.

use bulkhead_tests::network::{Network, User};

use crate::pod::{
    APPLICATION, Answer, FAR_V4, FAR_V6, OUTSIDE_V4, OUTSIDE_V6, POD_V4, POD_V6, Pod, ask, dial,
};

#[test]
fn a_connection_to_any_port_of_the_pod_goes_to_the_proxy_which_learns_where_it_was_going() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for port in [80, 443, 65_535] {
        let to = format!("{POD_V4}:{port}");
        assert_eq!(pod.called_from(OUTSIDE_V4, &to), Answer::by("proxy", &to));
        let to = format!("[{POD_V6}]:{port}");
        assert_eq!(pod.called_from(OUTSIDE_V6, &to), Answer::by("proxy", &to));
    }
}

#[test]
fn an_excluded_port_reaches_the_application_directly() {
    let pod = Pod::start(&[80, 81, 8000, 8100, 8101]);
    pod.init(&[("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS", "80,8000-8100")]);
    for (port, who) in [
        (80, "application"),
        (81, "proxy"),
        (8000, "application"),
        (8100, "application"),
        (8101, "proxy"),
    ] {
        for (from, to) in [(OUTSIDE_V4, POD_V4), (OUTSIDE_V6, "[2001:db8::10]")] {
            let to = format!("{to}:{port}");
            assert_eq!(pod.called_from(from, &to), Answer::by(who, &to));
        }
    }
}

#[test]
fn where_ports_are_included_all_others_reach_the_application_directly() {
    let pod = Pod::start(&[80, 81]);
    pod.init(&[("BULKHEAD_REDIRECT_INCLUDE_INBOUND_PORTS", "80")]);
    for (port, who) in [(80, "proxy"), (81, "application")] {
        let to = format!("{POD_V4}:{port}");
        assert_eq!(pod.called_from(OUTSIDE_V4, &to), Answer::by(who, &to));
    }
}

#[test]
fn an_excluded_client_reaches_the_application_directly() {
    let pod = Pod::start(&[80]);
    let excluded = format!("{FAR_V4}/32,{FAR_V6}/128");
    pod.init(&[("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_CIDRS", &excluded)]);
    for (from, to, who) in [
        (FAR_V4, "192.0.2.10:80", "application"),
        (OUTSIDE_V4, "192.0.2.10:80", "proxy"),
        (FAR_V6, "[2001:db8::10]:80", "application"),
        (OUTSIDE_V6, "[2001:db8::10]:80", "proxy"),
    ] {
        assert_eq!(pod.called_from(from, to), Answer::by(who, to));
    }
}

#[test]
fn the_proxys_own_ports_are_reached_as_they_are() {
    let mut pod = Pod::start(&[]);
    pod.serve("status", "[::]:15020");
    pod.init(&[]);
    let status = format!("{POD_V4}:15020");
    let answer = pod.called_from(OUTSIDE_V4, &status);
    assert_eq!(answer, Answer::by("status", &status));
    // Nobody redirected this one, and the proxy sees its own address.
    let own = format!("{POD_V4}:15006");
    assert_eq!(pod.called_from(OUTSIDE_V4, &own), Answer::by("proxy", &own));
}

#[test]
fn what_only_passes_through_the_pod_is_left_alone() {
    let pod = Pod::start(&[80]);
    let inner = Network::new();
    pod.network.link("inner", &inner, "eth0");
    pod.network.configure("addr add 203.0.113.1/24 dev inner");
    pod.network.set_parameter("net/ipv4/ip_forward", "1");
    inner.configure("addr add 203.0.113.2/24 dev eth0\nroute add default via 203.0.113.1");
    pod.outside
        .configure(&format!("route add 203.0.113.0/24 via {POD_V4}"));
    pod.init(&[]);
    let far = format!("{FAR_V4}:80");
    let stream = dial(&inner, User::Root, None, &far).unwrap();
    assert_eq!(ask(&stream), Answer::by("outside", &far));
    let to_pod = dial(&inner, User::Root, None, "203.0.113.1:80").unwrap();
    assert_eq!(ask(&to_pod), Answer::by("proxy", "203.0.113.1:80"));
    assert_eq!(pod.call(APPLICATION, &far), Answer::by("proxy", &far));
}
