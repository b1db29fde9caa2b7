//! Whose tokens are believed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bulkhead_core::settings::Settings;
use serde::Deserialize;

use super::{TokenRules, name};
use crate::https::{Access, HttpsUrl, UrlError};

/// Who says whether a token is good. Each token has one judge, by the issuer that
/// it names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Authentication {
    /// Whether the API server judges the tokens of every issuer that is not in
    /// the list.
    pub kubernetes: bool,
    /// Those whose keys judge their own tokens.
    pub issuers: Vec<TokenIssuer>,
}

impl Authentication {
    /// The API server, by TokenReview, and nobody else.
    pub fn kubernetes() -> Self {
        Self {
            kubernetes: true,
            issuers: Vec::new(),
        }
    }

    /// One issuer with its keys in a file, and nobody else.
    pub fn jwks_file(path: impl Into<PathBuf>, issuer: impl Into<String>) -> Self {
        Self {
            kubernetes: false,
            issuers: vec![TokenIssuer::new(
                issuer.into(),
                KeySource::File(path.into()),
            )],
        }
    }

    /// Whether judging a token may mean to wait for somebody else.
    pub fn is_remote(&self) -> bool {
        let is_fetched = |issuer: &TokenIssuer| !matches!(issuer.keys, KeySource::File(_));
        self.kubernetes || self.issuers.iter().any(is_fetched)
    }
}

/// Somebody who signs tokens for workloads, and what is believed of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenIssuer {
    /// What the tokens say that their issuer is (`iss`).
    pub name: String,
    pub keys: KeySource,
    /// The audiences of which a token must have one; where there is none, that of
    /// [`TokenRules`].
    pub audiences: Vec<String>,
    /// Whether a token may be bound to no pod; where nothing is said, as
    /// [`TokenRules`] say.
    pub allow_without_pod: Option<bool>,
    /// The namespaces of the identities that it may speak of; all, where there is
    /// no list.
    pub namespaces: Option<BTreeSet<String>>,
}

impl TokenIssuer {
    pub fn new(name: String, keys: KeySource) -> Self {
        Self {
            name,
            keys,
            audiences: Vec::new(),
            allow_without_pod: None,
            namespaces: None,
        }
    }

    /// With what is not said of it taken from the rules for all.
    pub(crate) fn with_defaults(mut self, rules: &TokenRules) -> Self {
        if self.audiences.is_empty() {
            self.audiences.push(rules.audience.clone());
        }
        self.allow_without_pod
            .get_or_insert(rules.allow_without_pod);
        self
    }
}

/// Where the public keys of an issuer are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// A JWK set (RFC 7517) in a file.
    File(PathBuf),
    Fetched(FetchedKeys),
}

/// Keys that are fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FetchedKeys {
    pub address: KeyAddress,
    pub access: Access,
}

/// What says where they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyAddress {
    /// The address of a JWK set.
    JwkSet(HttpsUrl),
    /// The issuer's own configuration (OpenID Connect Discovery 1.0); this is its
    /// address without the well-known path.
    Discovery(HttpsUrl),
}

impl KeySource {
    fn fetched(address: KeyAddress) -> Self {
        let access = Access::default();
        Self::Fetched(FetchedKeys { address, access })
    }
}

/// Reads who is believed.
pub(super) fn read(settings: &Settings<'_>) -> Authentication {
    let beside = settings.parsed(name::TOKEN_ISSUERS, parse_issuers);
    let issuers = beside.unwrap_or_default();
    match settings.text(name::AUTHENTICATION).as_deref() {
        None | Some("kubernetes") => Authentication {
            kubernetes: true,
            issuers,
        },
        Some("issuers") => {
            if issuers.is_empty() && settings.text(name::TOKEN_ISSUERS).is_none() {
                settings.reject(name::TOKEN_ISSUERS, "is not set, and there is nobody else");
            }
            Authentication {
                kubernetes: false,
                issuers,
            }
        }
        Some(text) => read_only_issuer(settings, text),
    }
}

/// `jwks:PATH` or `jwks:https://…`: one issuer, whose name has a variable of its
/// own.
fn read_only_issuer(settings: &Settings<'_>, text: &str) -> Authentication {
    let keys = match text.strip_prefix("jwks:") {
        Some(place) if !place.is_empty() => key_source(place),
        _ => Err(format!(
            "{text:?} is none of kubernetes, issuers, jwks:PATH and jwks:https://…"
        )),
    };
    let keys = match keys {
        Ok(keys) => keys,
        Err(problem) => {
            settings.reject(name::AUTHENTICATION, &format!("is not usable: {problem}"));
            return Authentication::kubernetes();
        }
    };
    if settings.text(name::TOKEN_ISSUERS).is_some() {
        let problem = "is for BULKHEAD_CA_AUTHENTICATION=kubernetes or issuers: put the issuer of jwks: into the list";
        settings.reject(name::TOKEN_ISSUERS, problem);
    }
    Authentication {
        kubernetes: false,
        issuers: vec![TokenIssuer::new(
            settings.required(name::TOKEN_ISSUER),
            keys,
        )],
    }
}

fn key_source(place: &str) -> Result<KeySource, String> {
    match place.parse() {
        Ok(url) => Ok(KeySource::fetched(KeyAddress::JwkSet(url))),
        Err(error) if place.contains("://") => Err(format!("{place:?}: {error}")),
        Err(_) => Ok(KeySource::File(place.into())),
    }
}

/// An issuer, as it is written in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    issuer: String,
    jwks: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    audiences: Vec<String>,
    allow_tokens_without_pod: Option<bool>,
    namespaces: Option<BTreeSet<String>>,
}

fn parse_issuers(text: &str) -> Result<Vec<TokenIssuer>, String> {
    let written: Vec<Written> =
        serde_json::from_str(text).map_err(|error| format!("it is no list of issuers: {error}"))?;
    let mut issuers: Vec<TokenIssuer> = Vec::new();
    for written in written {
        let name = written.issuer.clone();
        let issuer = issuer(written).map_err(|problem| format!("issuer {name:?}: {problem}"))?;
        if issuers.iter().any(|known| known.name == name) {
            return Err(format!("issuer {name:?} is there twice"));
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

fn issuer(written: Written) -> Result<TokenIssuer, String> {
    if written.issuer.is_empty() {
        return Err("it has no name".to_owned());
    }
    let mut keys = match written.jwks.as_deref() {
        Some(place) => key_source(place)?,
        None => {
            let url = written.issuer.parse().map_err(|error: UrlError| {
                format!(
                    "its keys cannot be found by its name ({error}); say where they are in jwks"
                )
            });
            KeySource::fetched(KeyAddress::Discovery(url?))
        }
    };
    let access = Access {
        ca_file: written.ca_file,
        token_file: written.token_file,
    };
    match &mut keys {
        KeySource::Fetched(fetched) => fetched.access = access,
        KeySource::File(_) if access == Access::default() => {}
        KeySource::File(_) => {
            return Err("caFile and tokenFile are for keys that are fetched".to_owned());
        }
    }
    if written.namespaces.as_ref().is_some_and(BTreeSet::is_empty) {
        return Err("a list of no namespaces lets nobody in".to_owned());
    }
    if written.audiences.iter().any(String::is_empty) {
        return Err("an audience is empty".to_owned());
    }
    Ok(TokenIssuer {
        name: written.issuer,
        keys,
        audiences: written.audiences,
        allow_without_pod: written.allow_tokens_without_pod,
        namespaces: written.namespaces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::settings::SettingsError;

    fn read(variables: &[(&str, &str)]) -> Result<Authentication, SettingsError> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, text)| (*text).to_owned())
        };
        let settings = Settings::new(&lookup);
        let authentication = super::read(&settings);
        settings.finish(authentication)
    }

    #[test]
    fn one_issuer_has_its_keys_in_a_file_or_at_an_address() {
        let one = |place: &str| {
            read(&[
                (name::AUTHENTICATION, place),
                (name::TOKEN_ISSUER, "https://issuer"),
            ])
        };
        let file = one("jwks:/etc/jwks.json").unwrap();
        assert_eq!(
            file,
            Authentication::jwks_file("/etc/jwks.json", "https://issuer")
        );
        assert!(!file.is_remote());
        let fetched = one("jwks:https://issuer/jwks.json").unwrap();
        let url = "https://issuer/jwks.json".parse().unwrap();
        let keys = KeySource::fetched(KeyAddress::JwkSet(url));
        assert_eq!(fetched.issuers[0].keys, keys);
        assert!(fetched.is_remote() && !fetched.kubernetes);
        for bad in [
            "jwks:",
            "jwks:http://issuer/jwks.json",
            "none",
            "jwks:ftp://a",
        ] {
            assert!(one(bad).is_err(), "{bad}");
        }
        assert!(read(&[(name::AUTHENTICATION, "jwks:/etc/jwks.json")]).is_err());
    }

    #[test]
    fn issuers_from_outside_stand_beside_the_api_server() {
        let list = r#"[
            {"issuer": "https://vms.example/mesh", "audiences": ["a", "b"], "namespaces": ["vms"]},
            {"issuer": "robots", "jwks": "https://robots.example/keys", "caFile": "/etc/ca.crt",
             "tokenFile": "/etc/token", "allowTokensWithoutPod": true},
            {"issuer": "lab", "jwks": "/etc/lab.json"}
        ]"#;
        let both = read(&[(name::TOKEN_ISSUERS, list)]).unwrap();
        assert!(both.kubernetes);
        let [vms, robots, lab] = &both.issuers[..] else {
            panic!("{both:?}");
        };
        let address = KeyAddress::Discovery("https://vms.example/mesh".parse().unwrap());
        assert_eq!(vms.keys, KeySource::fetched(address));
        assert_eq!(vms.namespaces, Some(["vms".to_owned()].into()));
        let KeySource::Fetched(fetched) = &robots.keys else {
            panic!("{robots:?}");
        };
        assert_eq!(fetched.access.ca_file, Some("/etc/ca.crt".into()));
        assert_eq!(fetched.access.token_file, Some("/etc/token".into()));
        assert_eq!(robots.allow_without_pod, Some(true));
        assert_eq!(lab.keys, KeySource::File("/etc/lab.json".into()));

        let alone = [
            (name::TOKEN_ISSUERS, list),
            (name::AUTHENTICATION, "issuers"),
        ];
        assert!(!read(&alone).unwrap().kubernetes);
    }

    #[test]
    fn what_is_not_said_of_an_issuer_is_as_for_all() {
        let rules = TokenRules {
            audience: "bulkhead-ca".into(),
            allow_without_pod: true,
        };
        let issuer = TokenIssuer::new("a".into(), KeySource::File("a".into()));
        let with = issuer.clone().with_defaults(&rules);
        assert_eq!(with.audiences, ["bulkhead-ca"]);
        assert_eq!(with.allow_without_pod, Some(true));
        let own = TokenIssuer {
            audiences: vec!["own".into()],
            allow_without_pod: Some(false),
            ..issuer
        };
        assert_eq!(own.clone().with_defaults(&rules), own);
    }

    #[test]
    fn a_list_that_cannot_be_meant_is_a_mistake() {
        for list in [
            "",
            "{}",
            r#"[{"jwks": "/etc/a"}]"#,
            r#"[{"issuer": ""}]"#,
            r#"[{"issuer": "a name and no address"}]"#,
            r#"[{"issuer": "http://plaintext.example"}]"#,
            r#"[{"issuer": "a", "jwks": "http://plaintext.example/keys"}]"#,
            r#"[{"issuer": "a", "jwks": "/etc/a", "caFile": "/etc/ca"}]"#,
            r#"[{"issuer": "a", "jwks": "/etc/a", "namespaces": []}]"#,
            r#"[{"issuer": "a", "jwks": "/etc/a", "audiences": [""]}]"#,
            r#"[{"issuer": "a", "jwks": "/etc/a"}, {"issuer": "a", "jwks": "/etc/b"}]"#,
            r#"[{"issuer": "a", "jwks": "/etc/a", "audience": "typo"}]"#,
        ] {
            let alone = [
                (name::TOKEN_ISSUERS, list),
                (name::AUTHENTICATION, "issuers"),
            ];
            assert!(read(&alone).is_err(), "{list}");
        }
        let twice = [
            (
                name::TOKEN_ISSUERS,
                r#"[{"issuer": "a", "jwks": "/etc/a"}]"#,
            ),
            (name::AUTHENTICATION, "jwks:/etc/b"),
            (name::TOKEN_ISSUER, "b"),
        ];
        assert!(read(&twice).is_err());
    }
}
