//! What a token says before anybody has verified it: enough to know whom to ask
//! about it, to explain a refusal, and to know when a token ends that somebody
//! else found good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The claims that are looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Unverified {
    iss: Option<String>,
    exp: Option<u64>,
    nbf: Option<u64>,
}

impl Unverified {
    /// Nothing, where it is no token.
    pub(super) fn of(token: &str) -> Self {
        let claims = || {
            let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
            serde_json::from_slice(&claims).ok()
        };
        claims().unwrap_or_default()
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.iss.as_deref()
    }

    pub(super) fn expires(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.exp?))
    }

    /// A refusal's text with both clocks, where the token's validity does not hold
    /// `now` by ours.
    pub(super) fn explain(&self, refusal: String, now: SystemTime) -> String {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match (self.nbf, self.exp) {
            (_, Some(exp)) if exp <= now => format!(
                "{refusal} (it expired at {exp}, and this CA's clock says {now}, in seconds since 1970)"
            ),
            (Some(nbf), _) if nbf > now => format!(
                "{refusal} (it is valid from {nbf} on, and this CA's clock says {now}, in seconds since 1970: do the clocks differ?)"
            ),
            _ => refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_refusal_for_its_dates_names_both_clocks() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let explain = |claims: &str| Unverified::of(&token(claims)).explain("no".into(), now);
        let expired = explain(r#"{"exp": 900}"#);
        assert!(
            expired.contains("900") && expired.contains("1000"),
            "{expired}"
        );
        let early = explain(r#"{"nbf": 1100, "exp": 2000}"#);
        assert!(early.contains("1100") && early.contains("1000"), "{early}");
        assert_eq!(explain(r#"{"nbf": 900, "exp": 2000}"#), "no");
    }

    #[test]
    fn garbage_says_nothing() {
        for text in [
            "",
            ".",
            "..",
            "a.b.c",
            "a.e30.c",
            &token("[]"),
            &token(r#"{"exp": -1}"#),
        ] {
            assert_eq!(Unverified::of(text).expires(), None, "{text:?}");
        }
        let beyond = token(r#"{"exp": 18446744073709551615}"#);
        assert_eq!(Unverified::of(&beyond).expires(), None);
    }
}
