//! What the kernel says about the rules of a pod, or somebody who could speak in
//! its place.

#![no_main]

use bulkhead_redirect::netlink::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(ruleset) = decode(bytes) else {
        return;
    };
    for set in ruleset.sets.values() {
        let in_order = set.ranges.is_sorted_by(|one, next| one.1 < next.0);
        assert!(in_order, "{:?}", set.ranges);
        for (first, last) in &set.ranges {
            assert!(first <= last && *last <= set.kind.last(), "{first}-{last}");
        }
    }
});
