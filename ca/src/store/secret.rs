//! The files in a Kubernetes Secret. Its resource version is the store's: the
//! API server tells a writer that was overtaken.

use bulkhead_crds::owner::{Owner, Standing};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use zeroize::Zeroizing;

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
        let Some(mut secret) = found.map_err(|error| self.problem(error))? else {
            return Ok(());
        };
        let owners = self.owners().await?;
        if secret.metadata.owner_references == owners {
            return Ok(());
        }
        secret.metadata.owner_references = owners;
        let parameters = PostParams::default();
        match self.secrets.replace(&self.name, &parameters, &secret).await {
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
        let Some(secret) = found.map_err(|error| self.problem(error))? else {
            return Ok(None);
        };
        let mut files = Files::new();
        for (name, content) in secret.data.unwrap_or_default() {
            let text =
                String::from_utf8(content.0).map_err(|_| StoreError::NotText(name.clone()))?;
            files.insert(name, Zeroizing::new(text));
        }
        Ok(Some(Stored {
            files,
            version: Version(secret.metadata.resource_version.unwrap_or_default()),
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
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                owner_references: self.owners().await?,
                resource_version: previous.map(|version| version.0.clone()),
                ..ObjectMeta::default()
            },
            data: Some(data),
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        };
        let parameters = PostParams::default();
        let result = match previous {
            None => self.secrets.create(&parameters, &secret).await,
            Some(_) => self.secrets.replace(&self.name, &parameters, &secret).await,
        };
        match result {
            Ok(_) => Ok(Written::Done),
            // AlreadyExists when creating, Conflict when replacing.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Overtaken),
            Err(error) => Err(self.problem(error)),
        }
    }
}
