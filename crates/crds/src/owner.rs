//! Who owns what our programs make, so that Kubernetes' garbage collector takes
//! it away when Bulkhead is uninstalled, though nothing of ours runs any more.
//!
//! The owner is a ClusterRole of the installation, the one that lets the
//! program do its work. A cluster-scoped object may own objects of every scope
//! and namespace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::Resource as _;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Client, Resource as _};

/// How long an answer is believed: long enough that a thousand writes in a row
/// ask once a second, and short beside the time that an uninstallation takes.
const FRESH: Duration = Duration::from_secs(1);

/// What owns the objects that a program makes. Cheap to clone; all clones are
/// one.
#[derive(Clone)]
pub struct Owner(Option<Arc<Role>>);

struct Role {
    roles: Api<ClusterRole>,
    name: String,
    known: Mutex<Option<(Instant, Standing)>>,
}

/// Whether a program may make something, and what must own it.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It may, and these are the owners; none where nobody named one.
    Owned(Vec<OwnerReference>),
    /// The owner is gone or going: Bulkhead is being uninstalled, and whatever
    /// is made now would stay behind.
    Uninstalling,
}

impl Owner {
    /// The ClusterRole of this name.
    pub fn cluster_role(client: Client, name: &str) -> Self {
        Self(Some(Arc::new(Role {
            roles: Api::all(client),
            name: name.to_owned(),
            known: Mutex::new(None),
        })))
    }

    /// The ClusterRole of this name, if there is a name.
    pub fn named(client: Client, name: Option<&str>) -> Self {
        name.map_or_else(Self::nobody, |name| Self::cluster_role(client, name))
    }

    /// Nobody: what is made stays until somebody deletes it.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Whether an object names this owner, by name: its UID is known to
    /// [`Self::standing`] alone.
    pub fn is_named_by(&self, object: &ObjectMeta) -> bool {
        let references = object.owner_references.as_deref().unwrap_or_default();
        self.0.as_ref().is_none_or(|role| {
            references
                .iter()
                .any(|owner| owner.kind == ClusterRole::KIND && owner.name == role.name)
        })
    }

    /// How things stand, as the API server said a second ago at most. The
    /// owner's UID is part of it: a ClusterRole that was deleted and made anew
    /// is another owner, and what names the old one is collected.
    ///
    /// # Errors
    /// The API server does not answer, or the program may not get its own
    /// ClusterRole.
    pub async fn standing(&self) -> kube::Result<Standing> {
        let Some(role) = &self.0 else {
            return Ok(Standing::Owned(Vec::new()));
        };
        if let Some(standing) = role.known() {
            return Ok(standing);
        }
        let standing = match role.roles.get_opt(&role.name).await? {
            Some(found) if found.metadata.deletion_timestamp.is_none() => {
                Standing::Owned(found.owner_ref(&()).into_iter().collect())
            }
            Some(_) | None => Standing::Uninstalling,
        };
        role.note(&standing);
        Ok(standing)
    }
}

impl Role {
    fn known(&self) -> Option<Standing> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .as_ref()
            .filter(|(at, _)| at.elapsed() < FRESH)
            .map(|(_, standing)| standing.clone())
    }

    fn note(&self, standing: &Standing) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = known.as_ref().is_none_or(|(_, before)| before != standing);
        *known = Some((Instant::now(), standing.clone()));
        if has_changed && *standing == Standing::Uninstalling {
            tracing::warn!(
                cluster_role = self.name,
                "the ClusterRole that owns what this program makes is gone or being deleted; this \
                 is taken for an uninstallation, and nothing is written any more"
            );
        }
    }
}
