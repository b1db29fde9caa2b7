//! Connections of the pod to itself.

use crate::pod::{APPLICATION, Answer, POD_V4, PROXY, Pod};

/// Every way in which a process of the pod can name the pod.
const ITSELF: [&str; 4] = [
    "127.0.0.1:80",
    "[::1]:80",
    "192.0.2.10:80",
    "[2001:db8::10]:80",
];

#[test]
fn the_application_reaches_itself_directly_by_each_of_its_addresses() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for to in ITSELF {
        assert_eq!(pod.call(APPLICATION, to), Answer::by("application", to));
    }
}

#[test]
fn the_proxy_reaches_the_application_and_is_not_caught_again() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for to in ITSELF {
        assert_eq!(pod.call(PROXY, to), Answer::by("application", to));
    }
}

#[test]
fn a_proxy_that_calls_its_own_pod_from_a_loopback_address_is_treated_as_somebody_from_outside() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    for (from, to) in [("127.0.0.1", "192.0.2.10:80"), ("::1", "[2001:db8::10]:80")] {
        assert_eq!(pod.call_from(PROXY, from, to), Answer::by("proxy", to));
    }
    // Nobody else has this sign.
    let to = format!("{POD_V4}:80");
    let answer = pod.call_from(APPLICATION, "127.0.0.1", &to);
    assert_eq!(answer, Answer::by("application", &to));
}

#[test]
fn a_proxy_that_calls_its_own_pod_on_an_excluded_port_reaches_the_application() {
    let pod = Pod::start(&[80]);
    pod.init(&[("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS", "80")]);
    let to = format!("{POD_V4}:80");
    let answer = pod.call_from(PROXY, "127.0.0.1", &to);
    assert_eq!(answer, Answer::by("application", &to));
}

#[test]
fn the_proxys_own_listeners_are_reached_over_loopback() {
    let pod = Pod::start(&[]);
    pod.init(&[]);
    for to in ["127.0.0.1:15001", "[::1]:15001", "127.0.0.1:15006"] {
        assert_eq!(pod.call(APPLICATION, to), Answer::by("proxy", to));
    }
}
