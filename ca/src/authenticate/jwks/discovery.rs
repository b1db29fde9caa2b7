//! Where the keys of an issuer are: at an address that people gave, or where the
//! issuer's own configuration says (OpenID Connect Discovery 1.0, section 4).

use serde::Deserialize;

use super::keys::JwksError;
use crate::config::{FetchedKeys, KeyAddress};
use crate::https::{self, Access, Document, HttpsUrl};

/// The path of the configuration, below the issuer's address.
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// What is asked of the configuration.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// Fetches the keys of an issuer.
pub(super) async fn fetch(keys: &FetchedKeys, issuer: &str) -> Result<Document, JwksError> {
    let access = &keys.access;
    match &keys.address {
        KeyAddress::JwkSet(url) => get(url, access).await,
        KeyAddress::Discovery(url) => {
            let place = url.below(WELL_KNOWN).map_err(|error| JwksError::Address {
                place: issuer.to_owned(),
                found: url.to_string(),
                error,
            })?;
            let configuration = get(&place, access).await?;
            let keys = keys_of(&configuration.text, &place, issuer)?;
            get(&keys, &access_to(&keys, &place, access)).await
        }
    }
}

async fn get(url: &HttpsUrl, access: &Access) -> Result<Document, JwksError> {
    let fetched = https::get(url, access).await;
    fetched.map_err(|error| JwksError::Fetch(url.to_string(), error))
}

/// The address of the keys, in the configuration of exactly this issuer (4.3).
fn keys_of(text: &[u8], place: &HttpsUrl, issuer: &str) -> Result<HttpsUrl, JwksError> {
    let place = place.to_string();
    let configuration: Configuration = serde_json::from_slice(text)
        .map_err(|error| JwksError::Configuration(place.clone(), error))?;
    let shown = |text: String| text.chars().take(256).collect();
    if configuration.issuer != issuer {
        return Err(JwksError::OtherIssuer {
            place,
            found: shown(configuration.issuer),
            expected: issuer.to_owned(),
        });
    }
    let address = configuration.jwks_uri.parse();
    address.map_err(|error| JwksError::Address {
        place,
        found: shown(configuration.jwks_uri),
        error,
    })
}

/// A token is for the server that people named, and for no other that it names.
fn access_to(keys: &HttpsUrl, place: &HttpsUrl, access: &Access) -> Access {
    let token_file = access.token_file.clone();
    Access {
        token_file: token_file.filter(|_| keys.has_origin_of(place)),
        ..access.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> HttpsUrl {
        "https://a.example/.well-known/x".parse().unwrap()
    }

    fn keys(text: &str) -> Result<HttpsUrl, JwksError> {
        keys_of(text.as_bytes(), &place(), "https://a.example")
    }

    #[test]
    fn a_configuration_of_the_issuer_says_where_its_keys_are() {
        let text = r#"{"issuer": "https://a.example", "jwks_uri": "https://b.example/k", "x": 1}"#;
        assert_eq!(keys(text).unwrap().to_string(), "https://b.example/k");
    }

    #[test]
    fn a_configuration_of_somebody_else_and_keys_in_plaintext_are_refused() {
        for text in [
            r#"{"issuer": "https://a.example/", "jwks_uri": "https://a.example/k"}"#,
            r#"{"issuer": "https://a.example", "jwks_uri": "http://a.example/k"}"#,
            r#"{"issuer": "https://a.example", "jwks_uri": "/k"}"#,
            r#"{"issuer": "https://a.example"}"#,
            "<html>",
        ] {
            assert!(keys(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_shown_to_the_server_that_people_named_alone() {
        let with = Access {
            token_file: Some("/token".into()),
            ca_file: Some("/ca".into()),
        };
        let same = "https://a.example/keys".parse().unwrap();
        assert_eq!(access_to(&same, &place(), &with), with);
        for other in ["https://b.example/keys", "https://a.example:8443/keys"] {
            let shown = access_to(&other.parse().unwrap(), &place(), &with);
            assert_eq!(
                (shown.token_file, shown.ca_file),
                (None, Some("/ca".into()))
            );
        }
    }
}
