//! A resource of discovery, and the name that it is asked for by: what a proxy
//! reads of control, and control of any proxy.

#![no_main]

use bulkhead_core::discovery::{ResourceKind, ResourceName};
use bulkhead_proto::discovery::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let kind = ResourceKind::ALL[usize::from(*first) % ResourceKind::ALL.len()];
    if let Ok(resource) = decode(kind, rest) {
        assert_eq!(resource.kind(), kind);
        // What was accepted can be given on, and is read as the same.
        let written = encode(&resource);
        assert_eq!(decode(kind, &written).as_ref(), Ok(&resource));
        assert_eq!(encode(&resource), written);
    }
    if let Ok(text) = std::str::from_utf8(rest)
        && let Ok(name) = ResourceName::parse(kind, text)
    {
        // An answer carries the name of its question.
        assert_eq!(name.to_string(), text);
        assert_eq!(name.kind(), kind);
    }
});
