//! OpenID Connect discovery (OpenID Connect Discovery 1.0, 3 and 4): where the
//! keys of JWT-SVIDs are, for those outside the mesh who verify tokens.
//!
//! The documents are public. They are served in plaintext beside the metrics;
//! somebody else puts TLS in front, under the issuer's name.

use std::sync::Arc;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::jwk::{Jwk, JwkSet};
use bulkhead_runtime::http_server::{Method, Request, Response, StatusCode, text, with_type};
use serde_json::json;
use tokio::sync::watch;

use crate::workload_tokens::authorities;

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";
const JSON: &str = "application/json";
/// What JWT keys sign with.
const ALGORITHM: &str = "ES256";

/// Answers the requests of discovery.
pub struct Discovery {
    issuer: String,
    trust_domain: TrustDomain,
    bundle: watch::Receiver<Arc<str>>,
}

impl Discovery {
    /// For tokens of `issuer`, an https URL without a slash at its end, by the
    /// keys that the bundle document names.
    pub fn new(
        issuer: String,
        trust_domain: TrustDomain,
        bundle: watch::Receiver<Arc<str>>,
    ) -> Self {
        Self {
            issuer,
            trust_domain,
            bundle,
        }
    }

    /// The answer to a request for one of the documents, or nothing where the
    /// path is another's.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        match request.uri().path() {
            CONFIGURATION => Some(with_type(StatusCode::OK, JSON, self.configuration())),
            KEYS => Some(self.keys()),
            _ => None,
        }
    }

    fn configuration(&self) -> String {
        let document = json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}{KEYS}", self.issuer),
            // Required, although nobody is authorised here.
            "authorization_endpoint": "",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        });
        document.to_string()
    }

    fn keys(&self) -> Response {
        let document = self.bundle.borrow().clone();
        match authorities(&self.trust_domain, &document) {
            Ok(authorities) => {
                let keys = authorities.jwks().iter().map(as_openid).collect();
                let set = serde_json::to_string(&JwkSet { keys });
                let set = set.expect("a key set is texts");
                with_type(StatusCode::OK, JSON, set)
            }
            Err(error) => {
                tracing::error!(%error, "the CA's own bundle document cannot be read");
                text(StatusCode::INTERNAL_SERVER_ERROR, "see the CA's log\n")
            }
        }
    }
}

/// A key as OpenID Connect has it: `use` is one of RFC 7517's own words, and
/// `alg` is there, which some cannot do without.
fn as_openid(key: &Jwk) -> Jwk {
    Jwk {
        public_key_use: Some("sig".to_owned()),
        alg: Some(ALGORITHM.to_owned()),
        ..key.clone()
    }
}
