//! Responses as a client reads them that is stricter than most.

/// A response, and whether it was whole.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) is_whole: bool,
}

/// Reads all responses of a connection that has ended, the interim ones left out.
/// `heads` tells which of them answer HEAD, by their place.
pub(crate) fn read(mut bytes: &[u8], is_head: impl Fn(usize) -> bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let answer = read_one(&mut bytes, is_head(answers.len()));
        if !(100..200).contains(&answer.status) || answer.status == 101 {
            answers.push(answer);
        }
    }
    answers
}

fn read_one(bytes: &mut &[u8], is_head: bool) -> Answer {
    let end = position(bytes, b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {bytes:?}"));
    let head = std::str::from_utf8(&bytes[..end]).unwrap().to_owned();
    *bytes = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap();
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    let field = |wanted: &str| {
        let mut values = lines.clone().filter_map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            name.eq_ignore_ascii_case(wanted).then_some(value.trim())
        });
        let value = values.next();
        assert!(values.next().is_none(), "{wanted} is there twice: {head}");
        value
    };
    let length = field("content-length").map(|length| length.parse::<usize>().unwrap());
    let coding = field("transfer-encoding");
    assert!(coding.is_none() || length.is_none(), "two lengths: {head}");
    let has_none = is_head || matches!(status, 100..=199 | 204 | 304);
    let (body, is_whole) = match (coding, length) {
        _ if has_none => (Vec::new(), true),
        (Some(_), _) => chunked(bytes),
        (None, Some(length)) => {
            let there = length.min(bytes.len());
            (take(bytes, there), there == length)
        }
        (None, None) => (take(bytes, bytes.len()), true),
    };
    Answer {
        status,
        reason: field("bulkhead-reason").map(str::to_owned),
        body,
        is_whole,
    }
}

fn chunked(bytes: &mut &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = position(bytes, b"\r\n") else {
            return (body, false);
        };
        let line = String::from_utf8(take(bytes, end + 2)).unwrap();
        let size = line.trim_end().split(';').next().unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            // Trailers, and the empty line.
            let end = if bytes.starts_with(b"\r\n") {
                Some(2)
            } else {
                position(bytes, b"\r\n\r\n").map(|end| end + 4)
            };
            take(bytes, end.unwrap_or(bytes.len()));
            return (body, end.is_some());
        }
        if bytes.len() < size + 2 {
            body.extend(take(bytes, size.min(bytes.len())));
            return (body, false);
        }
        body.extend(take(bytes, size));
        assert_eq!(take(bytes, 2), b"\r\n", "behind a chunk");
    }
}

fn take(bytes: &mut &[u8], count: usize) -> Vec<u8> {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken.to_vec()
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut windows = bytes.windows(wanted.len());
    windows.position(|window| window == wanted)
}
