//! The chunked transfer coding, as clients and servers of the application send it.

#![no_main]

use bulkhead_proxy::http1::body::Body;
use bulkhead_proxy::http1::head::Framing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The first byte says in what pieces the others come.
    let Some((&size, bytes)) = bytes.split_first() else {
        return;
    };
    let followed = follow(bytes, 1 + usize::from(size));
    match read(bytes) {
        // A recipient that reads it all at once finds the end at the same byte.
        Some(length) => assert_eq!(followed, Some(length)),
        None => assert_eq!(followed, None, "it ended where nothing ends"),
    }
});

/// Where a body ends that arrives in pieces, if it does.
fn follow(bytes: &[u8], size: usize) -> Option<usize> {
    let mut body = Body::new(Framing::Chunked);
    let mut total = 0;
    for piece in bytes.chunks(size) {
        let count = body.advance(piece).ok()?;
        total += count;
        if count < piece.len() {
            assert!(
                body.is_complete(),
                "{count} of {} bytes were taken",
                piece.len()
            );
        }
        if body.is_complete() {
            return Some(total);
        }
    }
    None
}

/// The same by the grammar of RFC 9112, 7.1, on the whole of it.
fn read(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    loop {
        let (line, after) = line(rest, 8 * 1024)?;
        let size = line.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(size).ok()?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::try_from(u64::from_str_radix(digits, 16).ok()?).ok()?;
        rest = after;
        if size == 0 {
            break;
        }
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    let trailers = rest;
    loop {
        let (field, after) = line(rest, 64 * 1024)?;
        rest = after;
        if trailers.len() - rest.len() > 64 * 1024 {
            return None;
        }
        if field.is_empty() {
            return Some(bytes.len() - rest.len());
        }
        let colon = field.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&field[..colon]).ok()?;
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_forbidden = ["content-length", "host", "transfer-encoding"]
            .iter()
            .any(|forbidden| name.eq_ignore_ascii_case(forbidden));
        if name.is_empty() || is_forbidden || !name.bytes().all(is_token) {
            return None;
        }
    }
}

/// A line of text that ends in CRLF and is no longer than that with it, and what comes
/// after it.
fn line(bytes: &[u8], longest: usize) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    let (line, after) = bytes.split_at(end);
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let after = after.strip_prefix(b"\r\n")?;
    (line.iter().all(is_text) && end + 2 <= longest).then_some((line, after))
}
