//! HTTP/1: the head of a request or a response, and the body that it announces.

#![no_main]

use bulkhead_proxy::http1::body::Body;
use bulkhead_proxy::http1::head::{
    Framing, HeadEnd, parse_request, parse_response, replace_connection,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let end = HeadEnd::default().find(bytes);
    assert_eq!(find_byte_by_byte(bytes), end, "the end of the head");
    let Some(end) = end else {
        return;
    };
    let (head, rest) = bytes.split_at(end);

    if let Ok(request) = parse_request(head) {
        assert_eq!(request.length, head.len());
        assert!(!head[request.target.clone()].contains(&b' '));
        assert!(!head[request.method_text.clone()].is_empty());
        assert_ne!(request.framing, Framing::UntilClose, "of a request");

        // With another Connection header it is the same request otherwise.
        let mut forwarded = Vec::new();
        replace_connection(head, b"Connection: close\r\n", &mut forwarded);
        let again = parse_request(&forwarded).expect("what was valid stays valid");
        assert!(again.says_close && !again.keep_alive);
        assert_eq!(again.framing, request.framing);
        assert_eq!(forwarded[again.target], head[request.target]);
        follow(request.framing, rest);
    }
    if let Ok(response) = parse_response(head) {
        assert!((100..=999).contains(&response.status));
        follow(response.framing, rest);
    }
});

fn find_byte_by_byte(bytes: &[u8]) -> Option<usize> {
    let mut end = HeadEnd::default();
    (0..=bytes.len()).find_map(|length| end.find(&bytes[..length]))
}

/// A body ends at the same byte, whether it comes whole or in two pieces.
fn follow(framing: Framing, bytes: &[u8]) {
    let mut body = Body::new(framing);
    let whole = body.advance(bytes).map(|count| (count, body.is_complete()));

    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut body = Body::new(framing);
    let mut pieces = body.advance(first);
    if pieces == Ok(first.len()) {
        pieces = body.advance(second).map(|count| first.len() + count);
    }
    let pieces = pieces.map(|count| (count, body.is_complete()));
    assert_eq!(pieces, whole);
}
