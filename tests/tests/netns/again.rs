//! A second run, other rules, and none.

use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_core::redirect::RedirectConfig;
use bulkhead_redirect::table::Table;

use crate::pod::{APPLICATION, Answer, FAR_V4, OUTSIDE_V4, POD_V4, Pod, Program, ask, container};

#[test]
fn a_second_run_changes_nothing() {
    let pod = Pod::start(&[]);
    assert!(pod.init(&[]).contains("these rules are set now"));
    let first = pod.rules();
    assert_eq!(first, Some(Table::of(&RedirectConfig::default()).compile()));
    assert!(pod.init(&[]).contains("nothing was changed"));
    assert_eq!(pod.rules(), first);
}

#[test]
fn open_connections_stay_as_they_were_when_rules_come_and_change() {
    let pod = Pod::start(&[80]);
    let (to_pod, far) = (format!("{POD_V4}:80"), format!("{FAR_V4}:80"));
    let before = [pod.connected(&to_pod), pod.connect(APPLICATION, &far)];
    let [direct_in, direct_out] = before.each_ref().map(ask);
    assert_eq!(direct_in, Answer::by("application", &to_pod));
    assert_eq!(direct_out, Answer::by("outside", &far));

    pod.init(&[]);
    let redirected = [pod.connected(&to_pod), pod.connect(APPLICATION, &far)];
    let exclude_all = [
        ("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS", "80"),
        ("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_PORTS", "80"),
    ];
    for env in [&[][..], &exclude_all[..], &[][..]] {
        pod.init(env);
        assert_eq!(
            before.each_ref().map(ask),
            [direct_in.clone(), direct_out.clone()]
        );
        assert_eq!(
            redirected.each_ref().map(ask),
            [Answer::by("proxy", &to_pod), Answer::by("proxy", &far)]
        );
    }
}

#[test]
fn no_connection_slips_past_the_proxy_while_rules_are_replaced() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    let done = AtomicBool::new(false);
    let replaced = std::thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let mut replaced = 0;
            while !done.load(Ordering::Relaxed) {
                let port = (1000 + replaced).to_string();
                let said = pod.init(&[("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_PORTS", &port)]);
                assert!(said.contains("these rules are set now"), "{said}");
                replaced += 1;
            }
            replaced
        });
        let far = format!("{FAR_V4}:80");
        let answers: Vec<_> = (0..500).map(|_| pod.call(APPLICATION, &far)).collect();
        done.store(true, Ordering::Relaxed);
        assert!(answers.iter().all(|answer| answer.who == "proxy"));
        replacing.join().unwrap()
    });
    assert!(replaced > 1, "{replaced}");
}

#[test]
fn rules_that_somebody_changed_are_put_right() {
    let pod = Pod::start(&[80]);
    pod.init(&[]);
    let asked = pod.rules().unwrap();
    let mut changed = asked.clone();
    changed.chains.get_mut("output").unwrap().rules.clear();
    pod.with_netfilter(|netfilter| netfilter.replace(&changed).unwrap());
    let far = format!("{FAR_V4}:80");
    assert_eq!(pod.call(APPLICATION, &far).who, "outside");
    assert!(pod.init(&[]).contains("these rules are set now"));
    assert_eq!(pod.rules(), Some(asked));
    assert_eq!(pod.call(APPLICATION, &far).who, "proxy");
}

#[test]
fn removed_rules_redirect_nothing_more_and_leave_open_connections_as_they_are() {
    let pod = Pod::start(&[80]);
    let remove = || pod.run(container(), Program::WithCapability, &["remove"], &[]);
    assert!(remove().1.contains("there were no rules"));
    assert_eq!(pod.rules(), None);

    pod.init(&[]);
    let (to_pod, far) = (format!("{POD_V4}:80"), format!("{FAR_V4}:80"));
    let open = [pod.connected(&to_pod), pod.connect(APPLICATION, &far)];
    for said in ["the rules are gone", "there were no rules"] {
        let (removed, output) = remove();
        assert!(removed && output.contains(said), "{output}");
        assert_eq!(pod.called_from(OUTSIDE_V4, &to_pod).who, "application");
        assert_eq!(pod.call(APPLICATION, &far).who, "outside");
        let answers = open.each_ref().map(ask);
        assert_eq!(answers, [&to_pod, &far].map(|to| Answer::by("proxy", to)));
    }
    pod.init(&[]);
    assert_eq!(pod.call(APPLICATION, &far).who, "proxy");
}

#[test]
fn the_longest_lists_that_can_be_written_are_set() {
    let pod = Pod::start(&[]);
    let ports: Vec<_> = (0..256).map(|n| (1 + 2 * n).to_string()).collect();
    let v6: Vec<_> = (0..256)
        .map(|n| format!("2001:db8:{:x}::/48", 2 * n))
        .collect();
    let v4: Vec<_> = (0..256).map(|n| format!("10.{n}.1.0/24")).collect();
    let (ports, v4, v6) = (ports.join(","), v4.join(","), v6.join(","));
    let env = [
        ("BULKHEAD_REDIRECT_INCLUDE_INBOUND_PORTS", &*ports),
        ("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS", &ports),
        ("BULKHEAD_REDIRECT_INCLUDE_INBOUND_CIDRS", &v4),
        ("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_CIDRS", &v6),
        ("BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_PORTS", &ports),
        ("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_PORTS", &ports),
        ("BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_CIDRS", &v6),
        ("BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_CIDRS", &v4),
    ];
    assert!(pod.init(&env).contains("these rules are set now"));
    assert!(pod.init(&env).contains("nothing was changed"));
}
