//! What an application sends to the Workload API, before HTTP/2 reads it.

#![no_main]

use bulkhead_proxy::workload_api::authority::Rewriter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut whole = bytes.to_vec();
    Rewriter::default().rewrite(&mut whole);

    // Nothing but what no host has is written as something else.
    for (sent, read) in bytes.iter().zip(&whole) {
        assert!(sent == read || (b"%/".contains(sent) && *read == b'-'));
    }

    // However the bytes are cut on their way, they are read the same.
    let mut pieces = bytes.to_vec();
    let mut rewriter = Rewriter::default();
    pieces.chunks_mut(1).for_each(|byte| rewriter.rewrite(byte));
    assert_eq!(pieces, whole, "byte by byte");

    // What was read once is read the same again.
    let mut again = whole.clone();
    Rewriter::default().rewrite(&mut again);
    assert_eq!(again, whole, "read again");
});
