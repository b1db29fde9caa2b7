//! What a request must be to mean the same to everybody, before it is forwarded. That
//! names, values and pseudo-headers are well-formed (RFC 9113, 8.2 and 8.3) the HTTP/2
//! library has seen to.

use std::fmt;

use http::header::{CONTENT_LENGTH, HOST};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Uri};

use crate::http1::head::is_host;

/// Checks a request, and says in `:authority` for whom it is where only Host did.
pub(super) fn checked<B>(mut request: Request<B>) -> Result<Request<B>, RequestError> {
    let headers = request.headers();
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(RequestError::TwoLengths);
    }
    let path = request.uri().path_and_query();
    let path = path.map_or("", |path| path.as_str());
    let is_path = path.starts_with('/') || path == "*";
    if !is_path && request.method() != Method::CONNECT {
        return Err(RequestError::Path);
    }
    let host = one_host(&request).ok_or(RequestError::Host)?;
    if request.uri().authority().is_none() {
        let authority = Authority::try_from(host.as_bytes());
        let mut parts = request.uri().clone().into_parts();
        parts.authority = Some(authority.map_err(|_| RequestError::Host)?);
        parts.scheme = Some(Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| RequestError::Host)?;
        // Some servers take what is said twice for two.
        request.headers_mut().remove(HOST);
    }
    Ok(request)
}

/// The host that a request names. Two would mean one thing to policy and another to
/// the server; with none, each server takes one of its own.
fn one_host<B>(request: &Request<B>) -> Option<HeaderValue> {
    let authority = request.uri().authority();
    let authority = authority.map(|authority| HeaderValue::from_str(authority.as_str()));
    let hosts = request.headers().get_all(HOST).iter().cloned();
    let mut names = authority.and_then(Result::ok).into_iter().chain(hosts);
    let first = names.next().filter(|name| is_host(name.as_bytes()))?;
    let is_first = |name: HeaderValue| name.as_bytes().eq_ignore_ascii_case(first.as_bytes());
    names.all(is_first).then_some(first)
}

/// Which rule a request breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RequestError {
    Host,
    Path,
    TwoLengths,
}

impl std::error::Error for RequestError {}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "Host and :authority are missing, malformed or at odds (RFC 9113, 8.3.1)",
            Self::Path => ":path begins with no slash (RFC 9113, 8.3.1)",
            Self::TwoLengths => "Content-Length is repeated (RFC 9110, 8.6)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, fields: &[(&str, &str)]) -> Result<String, RequestError> {
        let request = fields
            .iter()
            .fold(Request::get(uri), |request, (name, value)| {
                request.header(*name, *value)
            });
        checked(request.body(()).unwrap()).map(|request| request.uri().to_string())
    }

    #[test]
    fn a_request_names_one_host() {
        let host = Err(RequestError::Host);
        for (uri, hosts, expected) in [
            ("http://cart/", &[][..], Ok("http://cart/")),
            ("http://cart/", &[("host", "CART")], Ok("http://cart/")),
            ("http://cart/", &[("host", "ledger")], host),
            ("/a?b", &[("host", "cart")], Ok("http://cart/a?b")),
            ("/", &[("host", "cart"), ("host", "ledger")], host),
            ("/", &[], host),
            ("/", &[("host", "")], host),
            ("/", &[("host", "cart/admin")], host),
            ("http://somebody@cart/", &[], host),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(check(uri, hosts), expected, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_request_has_one_length_at_most() {
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert!(check("http://cart/", &twice[..1]).is_ok());
        assert_eq!(check("http://cart/", &twice), Err(RequestError::TwoLengths));
    }
}
