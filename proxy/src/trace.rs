//! Where a request belongs to: the trace context of W3C (traceparent) or of Zipkin (B3).
//!
//! What a request says of that is passed on as it is. One that says nothing may be given
//! a beginning: a traceparent with a new trace, so that all who handle it log the same
//! identifier. Nothing is exported.

use std::fmt::Write as _;

/// The headers that say where a request belongs to, in lower case.
const CONTEXT: [&str; 3] = ["traceparent", "b3", "x-b3-traceid"];
/// The header that is added.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Of this many requests, so many are sampled as the setting says.
const OF: u16 = 10_000;

/// Begins traces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginner {
    sampling: u16,
}

impl Beginner {
    /// Nothing where no trace is to be begun.
    pub(crate) fn new(sampling: u16) -> Option<Self> {
        (sampling > 0).then_some(Self { sampling })
    }

    /// A traceparent for an HTTP/1 request with this head, if it belongs to no trace.
    pub(crate) fn for_head(self, head: &[u8]) -> Option<String> {
        let mut lines = head.split(|byte| *byte == b'\n').skip(1);
        let belongs = lines.any(|line| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            CONTEXT
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        });
        (!belongs).then(|| self.begin())
    }

    /// The same for one whose headers are known.
    pub(crate) fn for_headers(self, headers: &http::HeaderMap) -> Option<String> {
        let belongs = CONTEXT.iter().any(|known| headers.contains_key(*known));
        (!belongs).then(|| self.begin())
    }

    /// A new trace (W3C Trace Context, 3.2.2).
    fn begin(self) -> String {
        let sampled = u8::from(fastrand::u16(..OF) < self.sampling);
        let mut text = String::with_capacity(55);
        // Zero is no identifier. Writing to a string does not fail.
        let _ = write!(
            text,
            "00-{:032x}-{:016x}-{sampled:02x}",
            fastrand::u128(1..),
            fastrand::u64(1..)
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_belongs_to_a_trace_is_left_alone() {
        let beginner = Beginner::new(1).unwrap();
        for header in ["traceparent: 00-a-b-01", "B3: 0", "X-B3-TraceId: 1"] {
            let head = format!("GET / HTTP/1.1\r\nHost: cart\r\n{header}\r\n\r\n");
            assert_eq!(beginner.for_head(head.as_bytes()), None, "{header}");
            let (name, value) = header.split_once(": ").unwrap();
            let request = http::Request::get("/")
                .header(name, value)
                .body(())
                .unwrap();
            assert_eq!(beginner.for_headers(request.headers()), None, "{header}");
        }
    }

    #[test]
    fn a_trace_is_begun_in_the_form_of_the_standard() {
        assert!(Beginner::new(0).is_none());
        let all = Beginner::new(OF).unwrap();
        let text = all
            .for_head(b"GET /b3 HTTP/1.1\r\nHost: b3\r\n\r\n")
            .unwrap();
        let parts: Vec<_> = text.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [2, 32, 16, 2]
        );
        assert!(
            text.bytes()
                .all(|byte| b"0123456789abcdef-".contains(&byte)),
            "{text}"
        );
        assert_eq!(parts[3], "01");
        assert_ne!(all.begin(), all.begin());
    }

    #[test]
    fn as_many_traces_are_sampled_as_the_setting_says() {
        let half = Beginner::new(OF / 2).unwrap();
        let sampled = (0..1000).filter(|_| half.begin().ends_with("01")).count();
        assert!((300..700).contains(&sampled), "{sampled}");
    }
}
