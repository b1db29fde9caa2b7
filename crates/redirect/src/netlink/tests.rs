use bulkhead_core::cidr::Cidr;
use bulkhead_core::port_set::PortSet;
use bulkhead_core::redirect::{RedirectConfig, Selection};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::table::Table;

fn ports() -> impl Strategy<Value = PortSet> {
    let range = (1..=u16::MAX, 0..300_u16).prop_map(|(first, more)| {
        let last = first.saturating_add(more);
        (first, last)
    });
    vec(range, 0..8).prop_map(|ranges| ranges.into_iter().collect())
}

fn cidrs() -> impl Strategy<Value = Vec<Cidr>> {
    let v4 = (any::<[u8; 4]>(), 0..=32_u8)
        .prop_map(|(bytes, prefix)| format!("{}/{prefix}", std::net::Ipv4Addr::from(bytes)));
    let v6 = (any::<[u8; 16]>(), 0..=128_u8)
        .prop_map(|(bytes, prefix)| format!("{}/{prefix}", std::net::Ipv6Addr::from(bytes)));
    let cidr = prop_oneof![v4, v6].prop_map(|text| text.parse().unwrap());
    vec(cidr, 0..8)
}

fn selection<T: std::fmt::Debug>(
    of: impl Strategy<Value = T>,
) -> impl Strategy<Value = Selection<T>> {
    (any::<bool>(), of).prop_map(|(all, listed)| {
        if all {
            Selection::All
        } else {
            Selection::Only(listed)
        }
    })
}

prop_compose! {
    fn config()(
        include_inbound_ports in selection(ports()),
        exclude_inbound_ports in ports(),
        include_inbound_cidrs in selection(cidrs()),
        exclude_inbound_cidrs in cidrs(),
        include_outbound_ports in ports(),
        exclude_outbound_ports in ports(),
        include_outbound_cidrs in selection(cidrs()),
        exclude_outbound_cidrs in cidrs(),
    ) -> RedirectConfig {
        RedirectConfig {
            include_inbound_ports,
            exclude_inbound_ports,
            include_inbound_cidrs,
            exclude_inbound_cidrs,
            include_outbound_ports,
            exclude_outbound_ports,
            include_outbound_cidrs,
            exclude_outbound_cidrs,
            ..RedirectConfig::default()
        }
    }
}

/// The messages of a transaction that make things: a dump has the same ones.
fn as_dumped(ruleset: &Ruleset) -> Vec<u8> {
    let batch = Batch::replace(ruleset);
    let mut rest = batch.bytes.as_slice();
    let mut dumped = Vec::new();
    while let Some(length) = rest.first_chunk() {
        let (message, after) = rest.split_at(u32::from_ne_bytes(*length) as usize);
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        if kind > constant::NFNL_MSG_BATCH_END && kind != message::DELTABLE {
            dumped.extend(message);
        }
        rest = after;
    }
    dumped
}

proptest! {
    #[test]
    fn what_is_sent_is_read_back(config in config()) {
        let ruleset = Table::of(&config).compile();
        prop_assert_eq!(decode(&as_dumped(&ruleset)).unwrap(), ruleset);
    }

    #[test]
    fn no_bytes_break_the_reader(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = as_dumped(&Table::of(&RedirectConfig::default()).compile());
        let position = at.index(bytes.len());
        bytes[position] = byte;
        bytes.truncate(length.index(bytes.len()));
        let _ = decode(&bytes);
    }
}
