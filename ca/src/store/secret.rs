//! The files in a Kubernetes Secret. Its resource version is the store's: the
//! API server tells a writer that was overtaken.
//!
//! Secrets that passed through here are wiped; the bytes of the requests and
//! answers that carried them belong to the client, which does not wipe them.

use bulkhead_crds::owner::{Owner, Standing};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Files, Store, StoreError, Stored, Version, Written};

/// The type of the Secret, so that nobody mistakes it for another kind.
const TYPE: &str = "bulkhead.io/certificate-authority";

/// Keeps the files in a Secret.
pub struct SecretStore {
    secrets: Api<Secret>,
    name: String,
    /// What takes the Secret along when it is deleted itself.
    owner: Owner,
}

impl SecretStore {
    pub fn new(client: kube::Client, namespace: &str, name: String, owner: Owner) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            name,
            owner,
        }
    }

    /// Gives a Secret that is there to its owner, or takes it from one: what
    /// becomes of the keys at uninstallation is the current settings' to say.
    /// Nothing happens where that is so already.
    pub async fn settle_owner(&self) -> Result<(), StoreError> {
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
        let parameters = PostParams::default();
        let result = match previous {
            None => self.secrets.create(&parameters, &secret.0).await,
            Some(_) => {
                let replaced = self.secrets.replace(&self.name, &parameters, &secret.0);
                replaced.await
            }
        };
        match result.map(Wiped) {
            Ok(_) => Ok(Written::Done),
            // AlreadyExists when creating, Conflict when replacing.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Overtaken),
            Err(error) => Err(self.problem(error)),
        }
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
