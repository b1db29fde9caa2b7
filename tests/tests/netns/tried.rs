//! What `bulkhead-init` tries before it ends.

use bulkhead_core::redirect::RedirectConfig;
use bulkhead_redirect::check;
use bulkhead_tests::network::User;

use crate::pod::{APPLICATION, Answer, FAR_V4, Pod};

#[test]
fn redirection_is_tried_with_a_connection_of_each_family() {
    let pod = Pod::without_servers();
    let output = pod.init(&[]);
    for tried in [
        "a connection to 192.0.2.1:80 was redirected",
        "a connection to [2001:db8::1]:80 was redirected",
        "a connection to 127.0.0.1:",
        "a connection to [::1]:",
    ] {
        assert!(output.contains(tried), "{output}");
    }
}

#[test]
fn rules_that_do_not_work_are_noticed() {
    let pod = Pod::without_servers();
    let config = RedirectConfig::default();
    let tried = pod.network.within(User::Root, || check::try_out(&config));
    let problem = tried.unwrap_err().to_string();
    assert!(problem.contains("192.0.2.1:80"), "{problem}");
    assert!(problem.contains("127.0.0.1:15001"), "{problem}");
}

#[test]
fn where_the_proxy_runs_already_the_attempt_is_left_out_and_this_is_said() {
    let pod = Pod::start(&[]);
    let output = pod.init(&[]);
    for taken in ["127.0.0.1:15001 is taken", "[::1]:15001 is taken"] {
        assert!(output.contains(taken), "{output}");
    }
}

#[test]
fn a_pod_without_a_way_out_is_redirected_without_the_attempt() {
    let pod = Pod::without_servers();
    pod.network.configure("link set eth0 down");
    let output = pod.init(&[]);
    assert!(output.contains("no route to 192.0.2.1:80"), "{output}");
    assert!(pod.rules().is_some());
}

#[test]
fn a_pod_without_ipv6_is_redirected_all_the_same() {
    let mut pod = Pod::without_servers();
    pod.network
        .set_parameter("net/ipv6/conf/all/disable_ipv6", "1");
    let output = pod.init(&[]);
    assert!(output.contains("there is no ::1 here"), "{output}");
    pod.serve("proxy", "127.0.0.1:15001");
    let far = format!("{FAR_V4}:80");
    assert_eq!(pod.call(APPLICATION, &far), Answer::by("proxy", &far));
}
