//! The first bytes of a connection, from anybody who can reach a proxy.

#![no_main]

use bulkhead_proxy::detect::{Sniff, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // However the bytes are cut on their way, a decision once made stays made.
    let mut decided = None;
    for length in (0..bytes.len())
        .step_by(1 + bytes.len() / 64)
        .chain([bytes.len()])
    {
        let sniffed = sniff(&bytes[..length]);
        if let Some(decided) = decided {
            assert_eq!(sniffed, decided, "after {length} bytes");
        } else if sniffed != Sniff::More {
            decided = Some(sniffed);
        }
    }
});
