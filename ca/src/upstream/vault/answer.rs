//! What Vault says: certificates, tokens, and refusals in words that lead on.

use std::time::Duration;

use bulkhead_pki::bundle::Roots;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Url;
use crate::upstream::answer::Answer;
use crate::upstream::{Reason, UpstreamError};

/// The longest answer that is read, in bytes.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// The most of Vault's own words that is shown.
const MAX_SHOWN: usize = 512;

#[derive(Deserialize)]
struct Signed {
    data: SignedData,
}

#[derive(Deserialize)]
struct SignedData {
    certificate: String,
    #[serde(default)]
    issuing_ca: Option<String>,
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
}

/// Reads the answer to a request to sign.
pub fn signed(json: &[u8], roots: Option<&Roots>) -> Result<Answer, UpstreamError> {
    let Signed { data } = parse(json)?;
    let chain = data.ca_chain.unwrap_or_default();
    let issuer = data.issuing_ca;
    let texts = [&data.certificate].into_iter();
    let texts = texts.chain(issuer.as_ref()).chain(&chain);
    Answer::read(texts.map(String::as_str), roots)
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
}

/// A token that Vault gave.
pub struct Granted {
    pub token: Zeroizing<String>,
    pub lifetime: Duration,
}

/// Reads the answer to a login.
pub fn granted(json: &[u8]) -> Result<Granted, UpstreamError> {
    let LoggedIn { auth } = parse(json)?;
    if auth.client_token.is_empty() {
        return Err(UpstreamError::new(
            Reason::Refused,
            "Vault took the login and gave no token: does it ask for a second factor (MFA) there, \
             which nobody here can give?",
        ));
    }
    Ok(Granted {
        token: Zeroizing::new(auth.client_token),
        // A token that does not expire may still be revoked; nobody here minds
        // another login.
        lifetime: match auth.lease_duration {
            0 => Duration::from_secs(3600),
            seconds => Duration::from_secs(seconds.min(24 * 3600)),
        },
    })
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, UpstreamError> {
    serde_json::from_slice(json).map_err(|error| {
        UpstreamError::new(
            Reason::Unusable,
            format!(
                "Vault's answer is not what its API promises: line {}, column {}; is a Vault at \
                 that address?",
                error.line(),
                error.column()
            ),
        )
    })
}

#[derive(Default, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// What an answer other than success means, and what to do about it.
pub fn refusal(url: &Url, path: &str, status: u16, body: &[u8]) -> UpstreamError {
    let Errors { errors } = serde_json::from_slice(body).unwrap_or_default();
    let said = errors.join("; ");
    let said: String = said
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_SHOWN)
        .collect();
    let is_login = path.starts_with("auth/");
    let (reason, advice) = match status {
        403 if is_login => (
            Reason::Refused,
            "does the role permit this ServiceAccount, its namespace and the token's audience?"
                .to_owned(),
        ),
        403 => (
            Reason::Refused,
            format!(
                "is the token expired, or does its policy lack \
                 `path \"{path}\" {{ capabilities = [\"update\"] }}`?"
            ),
        ),
        404 => (
            Reason::Unusable,
            "there is nothing under that path: is the engine mounted there (BULKHEAD_CA_VAULT_MOUNT, \
             BULKHEAD_CA_VAULT_KUBERNETES_PATH), and in that namespace?"
                .to_owned(),
        ),
        400 if is_login => (
            Reason::Refused,
            "is BULKHEAD_CA_VAULT_KUBERNETES_ROLE a role of that auth method?".to_owned(),
        ),
        400 => (
            Reason::Refused,
            "do the role and the engine permit the lifetime, the URI names of the trust domain \
             and its keys?"
                .to_owned(),
        ),
        503 => (Reason::Unreachable, "it is sealed or a standby".to_owned()),
        429 | 472 | 473 | 500..=599 => {
            (Reason::Unreachable, "it may be overloaded or starting".to_owned())
        }
        _ => (Reason::Unusable, "is a Vault at that address?".to_owned()),
    };
    UpstreamError::new(
        reason,
        format!("Vault at {url} answered {path} with {status} ({said}): {advice}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_a_day_at_most() {
        for (said, kept) in [(0, 3600), (600, 600), (u64::MAX, 24 * 3600)] {
            let json = format!(r#"{{"auth": {{"client_token": "t", "lease_duration": {said}}}}}"#);
            let granted = granted(json.as_bytes()).unwrap();
            assert_eq!(granted.token.as_str(), "t");
            assert_eq!(granted.lifetime, Duration::from_secs(kept));
        }
    }

    #[test]
    fn a_login_that_wants_a_second_factor_is_refused_and_not_used_without_a_token() {
        let json = br#"{"auth": {"client_token": "", "mfa_requirement": {"mfa_request_id": "1"}}}"#;
        let error = granted(json).err().expect("no token was given");
        assert_eq!(error.reason(), Reason::Refused);
        assert!(error.to_string().contains("second factor"), "{error}");
    }
}
