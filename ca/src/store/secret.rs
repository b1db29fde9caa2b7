//! The files in a Kubernetes Secret. Its resource version is the store's: the
//! API server tells a writer that was overtaken.
//!
//! A Secret that is missing is made only where no root was lost with one: the
//! CertificateAuthority beside it names the root that signs.
//!
//! Secrets that passed through here are wiped; the bytes of the requests and
//! answers that carried them belong to the client, which does not wipe them.

use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, NAME,
};
use bulkhead_crds::owner::{Owner, Standing};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};
use zeroize::{Zeroize as _, Zeroizing};

mod changes;

use self::changes::Changes;
use super::deadline::in_time;
use super::{Files, Store, StoreError, Stored, Version, Written};
use crate::keyring::slots_of;

/// The type of the Secret, so that nobody mistakes it for another kind.
const TYPE: &str = "bulkhead.io/certificate-authority";

/// Keeps the files in a Secret.
pub struct SecretStore {
    secrets: Api<Secret>,
    /// The CA's own object, of which there is one.
    authorities: Api<CertificateAuthority>,
    name: String,
    /// What takes the Secret along when it is deleted itself.
    owner: Owner,
    changes: Changes,
}

impl SecretStore {
    pub fn new(client: kube::Client, namespace: &str, name: String, owner: Owner) -> Self {
        Self {
            changes: Changes::new(client.clone(), namespace, &name),
            secrets: Api::namespaced(client.clone(), namespace),
            authorities: Api::namespaced(client, namespace),
            name,
            owner,
        }
    }

    /// Gives a Secret that is there to its owner, or takes it from one: what
    /// becomes of the keys at uninstallation is the current settings' to say.
    /// Nothing happens where that is so already.
    pub async fn settle_owner(&self) -> Result<(), StoreError> {
        in_time(self.settle_owner_now()).await
    }

    async fn settle_owner_now(&self) -> Result<(), StoreError> {
        let found = self.secrets.get_opt(&self.name).await;
        let Some(mut secret) = found.map_err(|error| self.problem(error))?.map(Wiped) else {
            return Ok(());
        };
        let owners = self.owners().await?;
        if secret.0.metadata.owner_references == owners {
            return Ok(());
        }
        secret.0.metadata.owner_references = owners;
        let parameters = PostParams::default();
        let replaced = self.secrets.replace(&self.name, &parameters, &secret.0);
        match replaced.await.map(Wiped) {
            // Another replica did it, or renews the intermediate now and does
            // it with that.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop).map_err(|error| self.problem(error)),
        }
    }

    async fn owners(&self) -> Result<Option<Vec<OwnerReference>>, StoreError> {
        match self.owner.standing().await {
            Ok(Standing::Owned(owners)) => Ok(Some(owners).filter(|all| !all.is_empty())),
            Ok(Standing::Uninstalling) => Err(StoreError::Uninstalling),
            Err(error) => Err(self.problem(error)),
        }
    }

    /// Makes the Secret; nothing where another replica has, or where one was lost.
    async fn begin(&self, secret: &Secret, files: &Files) -> Result<Option<Secret>, StoreError> {
        let owners = secret.metadata.owner_references.as_deref();
        if let Some(root) = self.lost_root(files, owners.unwrap_or_default()).await? {
            let found = self.secrets.get_metadata_opt(&self.name).await;
            return match found.map_err(|error| self.problem(error))? {
                Some(_) => Ok(None),
                None => Err(StoreError::Lost {
                    name: self.name.clone(),
                    root,
                }),
            };
        }
        self.written(self.secrets.create(&PostParams::default(), secret).await)
    }

    /// The root that signs, as the CA's own object says, where these files do not
    /// have it: an upstream's is in what is begun anew, too. An object of other
    /// owners is an installation's that is gone, and about to be collected.
    async fn lost_root(
        &self,
        files: &Files,
        owners: &[OwnerReference],
    ) -> Result<Option<u32>, StoreError> {
        let object = match self.authorities.get_opt(NAME).await {
            Ok(object) => object,
            // Whoever may not read it has never written it; nor has anybody where
            // there is no such kind.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => None,
            Err(error) => return Err(self.problem(error)),
        };
        let object = object.filter(|object| {
            let theirs = object.owner_references();
            let is_same = |one: &OwnerReference| theirs.iter().any(|other| one.uid == other.uid);
            owners.is_empty() || theirs.is_empty() || owners.iter().any(is_same)
        });
        let status = object.and_then(|object| object.status).unwrap_or_default();
        let slots = slots_of(files)?;
        let is_here = |fingerprint: &str| {
            let mut roots = slots.roots.iter();
            roots.any(|root| root.authority.fingerprint == fingerprint)
        };
        let signs = status.authorities.iter().find(|authority| {
            authority.kind == AuthorityKind::Root && authority.state == AuthorityState::Active
        });
        let lost = signs.filter(|root| !is_here(&root.fingerprint));
        Ok(lost.map(|root| root.generation))
    }

    /// What was written, if nobody else wrote at the same time.
    fn written(&self, result: kube::Result<Secret>) -> Result<Option<Secret>, StoreError> {
        match result {
            Ok(secret) => Ok(Some(secret)),
            // AlreadyExists when creating, Conflict when replacing.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(self.problem(error)),
        }
    }

    fn problem(&self, error: kube::Error) -> StoreError {
        StoreError::Secret {
            name: self.name.clone(),
            error: Box::new(error),
        }
    }
}

#[tonic::async_trait]
impl Store for SecretStore {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        let found = self.secrets.get_opt(&self.name).await;
        let Some(mut secret) = found.map_err(|error| self.problem(error))?.map(Wiped) else {
            return Ok(None);
        };
        let mut files = Files::new();
        for (name, content) in secret.0.data.iter_mut().flatten() {
            // Taken, not copied: what is left is empty.
            let text = String::from_utf8(std::mem::take(&mut content.0))
                .map_err(|_| StoreError::NotText(name.clone()))?;
            files.insert(name.clone(), Zeroizing::new(text));
        }
        let version = secret.0.metadata.resource_version.take();
        Ok(Some(Stored {
            files,
            version: Version(version.unwrap_or_default()),
        }))
    }

    async fn write(
        &self,
        files: &Files,
        previous: Option<&Version>,
    ) -> Result<Written, StoreError> {
        let data = files
            .iter()
            .map(|(name, text)| (name.clone(), ByteString(text.as_bytes().to_vec())))
            .collect();
        let secret = Wiped(Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                owner_references: self.owners().await?,
                resource_version: previous.map(|version| version.0.clone()),
                ..ObjectMeta::default()
            },
            data: Some(data),
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        });
        let written = match previous {
            None => self.begin(&secret.0, files).await?,
            Some(_) => {
                let parameters = PostParams::default();
                self.written(
                    self.secrets
                        .replace(&self.name, &parameters, &secret.0)
                        .await,
                )?
            }
        };
        Ok(match written.map(Wiped) {
            Some(_) => Written::Done,
            None => Written::Overtaken,
        })
    }

    async fn changed(&self) {
        self.changes.next().await;
    }
}

/// A Secret whose contents are wiped when it goes.
struct Wiped(Secret);

impl Wiped {
    fn wipe(&mut self) {
        for content in self.0.data.iter_mut().flatten().map(|(_, content)| content) {
            content.0.zeroize();
        }
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Lifetimes;
    use crate::keyring::Keyring;
    use crate::rotation::Step;
    use bulkhead_core::sidecar::default_trust_domain;
    use bulkhead_crds::certificate_authority::{
        Authority, CertificateAuthoritySpec, CertificateAuthorityStatus,
    };
    use bulkhead_runtime::clock::Clock;
    use hyper::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// An API server without the Secret.
    #[derive(Clone)]
    struct Api {
        /// What it has of the CertificateAuthority.
        authority: (StatusCode, Value),
        created: Arc<AtomicUsize>,
    }

    impl Api {
        fn new(authority: (StatusCode, Value)) -> Self {
            let created = Arc::default();
            Self { authority, created }
        }

        fn answer(&self, request: &Request<Body>) -> (StatusCode, Value) {
            if request.method() == Method::POST {
                self.created.fetch_add(1, Ordering::Relaxed);
                return (StatusCode::CREATED, json!({"metadata": {}}));
            }
            match request.uri().path() {
                path if path.contains("/certificateauthorities/") => self.authority.clone(),
                path if path.contains("/clusterroles/") => {
                    let role = json!({"metadata": {"name": "owner", "uid": "now"}});
                    (StatusCode::OK, role)
                }
                _ => refusal(StatusCode::NOT_FOUND),
            }
        }

        fn store(&self) -> SecretStore {
            let api = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let (code, body) = api.answer(&request);
                let mut response = Response::new(Body::from(body.to_string().into_bytes()));
                *response.status_mut() = code;
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let client = kube::Client::new(service, "mesh");
            let owner = Owner::named(client.clone(), Some("owner"));
            SecretStore::new(client, "mesh", "keys".to_owned(), owner)
        }
    }

    fn refusal(code: StatusCode) -> (StatusCode, Value) {
        let reason = code.canonical_reason().unwrap().replace(' ', "");
        let body = json!({"status": "Failure", "message": "", "code": code.as_u16(),
            "reason": reason});
        (code, body)
    }

    fn object(owner: &str, status: Option<CertificateAuthorityStatus>) -> (StatusCode, Value) {
        let mut object = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
        object.status = status;
        object.metadata.owner_references = Some(vec![OwnerReference {
            uid: owner.to_owned(),
            ..OwnerReference::default()
        }]);
        (StatusCode::OK, serde_json::to_value(object).unwrap())
    }

    fn naming_root(owner: &str, fingerprint: &str) -> (StatusCode, Value) {
        let root = Authority {
            kind: AuthorityKind::Root,
            generation: 3,
            state: AuthorityState::Active,
            fingerprint: fingerprint.to_owned(),
            serial: None,
            not_before: None,
            not_after: None,
            key_type: None,
            issuer: None,
        };
        object(
            owner,
            Some(CertificateAuthorityStatus {
                authorities: vec![root],
                ..CertificateAuthorityStatus::default()
            }),
        )
    }

    /// A CA of its own, and the fingerprint of its root.
    fn begun() -> (Files, String) {
        let day = Duration::from_secs(24 * 3600);
        let lifetimes = Lifetimes {
            default: day,
            max: day,
            root: 3650 * day,
            intermediate: 365 * day,
        };
        let mut keyring = Keyring::empty(default_trust_domain());
        let now = Clock::system().now();
        keyring.take(&Step::Begin, &lifetimes, None, now).unwrap();
        let root = keyring.slots().roots[0].authority.fingerprint.clone();
        (keyring.to_files().unwrap(), root)
    }

    #[tokio::test]
    async fn a_new_ca_is_not_begun_where_one_signs_whose_secret_was_lost() {
        let (files, _) = begun();
        let api = Api::new(naming_root("now", "another"));
        let error = api.store().write(&files, None).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("root 3"), "{said}");
        assert!(said.contains("Restore the Secret"), "{said}");
        assert_eq!(api.created.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_new_ca_is_begun_where_there_was_none_or_where_its_root_is_an_upstreams() {
        let (files, root) = begun();
        for authority in [
            refusal(StatusCode::NOT_FOUND),
            refusal(StatusCode::FORBIDDEN),
            (StatusCode::NOT_FOUND, json!("page not found: no such kind")),
            object("now", None),
            naming_root("now", &root),
            naming_root("of an installation that is gone", "another"),
        ] {
            let api = Api::new(authority.clone());
            let written = api.store().write(&files, None).await;
            assert_eq!(written.unwrap(), Written::Done, "{authority:?}");
            assert_eq!(api.created.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn a_secret_is_empty_of_keys_before_its_memory_is_given_back() {
        let content = ByteString(b"a key".to_vec());
        let secret = Secret {
            data: Some([("root.key".to_owned(), content)].into()),
            ..Secret::default()
        };
        let mut wiped = Wiped(secret);
        // What dropping does.
        wiped.wipe();
        let data = wiped.0.data.as_ref().unwrap();
        assert!(data["root.key"].0.is_empty());
    }
}
