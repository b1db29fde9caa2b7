use super::*;
use bulkhead_core::cidr;

fn text(config: &RedirectConfig) -> String {
    Table::of(config).to_string()
}

#[test]
fn overlapping_and_touching_ranges_become_one() {
    let cidrs =
        cidr::parse_list("10.128.0.0/9,10.0.0.0/9,10.1.0.0/16,11.0.0.0/8,13.0.0.0/8,::/0").unwrap();
    let [first, second] = address_ranges(Family::Ipv4, &cidrs)[..] else {
        panic!("two ranges");
    };
    assert_eq!(first, (0x0a00_0000, 0x0bff_ffff));
    assert_eq!(second, (0x0d00_0000, 0x0dff_ffff));
    assert_eq!(address_ranges(Family::Ipv6, &cidrs), [(0, u128::MAX)]);
}

#[test]
fn a_pod_that_excludes_nothing_has_few_rules() {
    let text = text(&RedirectConfig::default());
    assert_eq!(text.matches("comment").count(), 10, "{text}");
}

#[test]
fn the_docs_show_the_rules_as_they_are() {
    let page = include_str!("../../../../docs/redirection.md");
    let text = text(&RedirectConfig::default());
    assert!(
        page.contains(&text),
        "docs/redirection.md lacks this:\n{text}"
    );
}

#[test]
fn a_list_with_nothing_in_it_selects_nothing() {
    let none = RedirectConfig {
        include_inbound_ports: Selection::Only(PortSet::default()),
        include_outbound_cidrs: Selection::Only(Vec::new()),
        ..RedirectConfig::default()
    };
    let text = text(&none);
    assert!(
        text.contains("tcp dport != @inbound_ports return"),
        "{text}"
    );
    assert!(!text.contains(":15001"), "{text}");
}
