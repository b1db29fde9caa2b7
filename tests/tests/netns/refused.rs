//! What cannot be done is said, and leaves nothing half set.

use bulkhead_core::redirect::RedirectConfig;
use bulkhead_redirect::ruleset::{Expression, Program as Rule, Ruleset};
use bulkhead_redirect::table::Table;

use crate::pod::{Pod, Program, container, container_without_net_admin};

#[test]
fn a_container_without_net_admin_is_told_so_and_sets_nothing() {
    let pod = Pod::start(&[]);
    let user = container_without_net_admin();
    let (set, output) = pod.run(user, Program::WithCapability, &[], &[]);
    assert!(!set, "{output}");
    assert!(
        output.contains("securityContext.capabilities.add"),
        "{output}"
    );
    assert_eq!(pod.rules(), None);
}

#[test]
fn a_program_whose_file_lost_its_capability_is_told_so_and_sets_nothing() {
    let pod = Pod::start(&[]);
    let (set, output) = pod.run(container(), Program::Bare, &[], &[]);
    assert!(!set, "{output}");
    assert!(output.contains("setcap cap_net_admin+p"), "{output}");
    assert_eq!(pod.rules(), None);
}

#[test]
fn settings_that_cannot_be_read_are_named_and_set_nothing() {
    let pod = Pod::start(&[]);
    let env = [
        ("BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS", "http"),
        ("BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_CIDRS", "10.0.0.0/33"),
    ];
    let (set, output) = pod.run(container(), Program::WithCapability, &[], &env);
    assert!(!set, "{output}");
    assert!(
        env.iter().all(|(name, _)| output.contains(name)),
        "{output}"
    );
    assert_eq!(pod.rules(), None);
}

#[test]
fn where_the_last_rule_is_refused_none_is_set_and_the_error_names_it() {
    let pod = Pod::start(&[]);
    let refused = with_a_rule_that_no_kernel_takes();
    let error = pod.with_netfilter(|netfilter| netfilter.replace(&refused).unwrap_err());
    let text = error.to_string();
    assert!(text.contains("of chain prerouting (nobody's)"), "{text}");
    assert!(text.contains("`lookup`"), "{text}");
    assert_eq!(pod.rules(), None);
}

#[test]
fn where_a_change_is_refused_the_rules_stay_that_were_there() {
    let pod = Pod::start(&[]);
    pod.init(&[]);
    let before = pod.rules();
    let refused = with_a_rule_that_no_kernel_takes();
    pod.with_netfilter(|netfilter| netfilter.replace(&refused).unwrap_err());
    assert!(before.is_some());
    assert_eq!(pod.rules(), before);
}

/// The default rules, and at their end one that looks into a set that is not
/// there.
fn with_a_rule_that_no_kernel_takes() -> Ruleset {
    let mut rules = Table::of(&RedirectConfig::default()).compile();
    let (_, last) = rules.chains.iter_mut().next_back().unwrap();
    last.rules.push(Rule {
        expressions: vec![Expression::Lookup {
            set: "not_there".to_owned(),
            inverted: false,
        }],
        comment: "nobody's".to_owned(),
    });
    rules
}
