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

/// How long an answer is remembered: long enough that a thousand writes in a row
/// ask once a second, and short beside the time that an uninstallation takes.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What owns the objects that a program makes. Cheap to clone; all clones are
/// one.
#[derive(Clone)]
pub struct Owner(Option<Arc<Role>>);

struct Role {
    roles: Api<ClusterRole>,
    name: String,
    /// The last answer, and when it was asked for.
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

    /// How things stand now. The owner's UID is part of it: a ClusterRole that
    /// was deleted and made anew is another owner, and what names the old one is
    /// collected.
    ///
    /// # Errors
    /// The API server does not answer, or the program may not get its own
    /// ClusterRole.
    pub async fn standing(&self) -> kube::Result<Standing> {
        self.standing_since(Instant::now()).await
    }

    /// How things stand, as the API server said at `noticed` or later, for
    /// whoever writes many objects at once. `noticed` is when the last of them
    /// was seen to be missing: Kubernetes collects what is owned after the owner,
    /// so an answer that is older may be of an owner that took the object along.
    ///
    /// # Errors
    /// Those of [`Self::standing`].
    pub async fn standing_since(&self, noticed: Instant) -> kube::Result<Standing> {
        let Some(role) = &self.0 else {
            return Ok(Standing::Owned(Vec::new()));
        };
        if let Some(standing) = role.known(noticed) {
            return Ok(standing);
        }
        let asked = Instant::now();
        let standing = match role.roles.get_opt(&role.name).await? {
            Some(found) if found.metadata.deletion_timestamp.is_none() => {
                Standing::Owned(found.owner_ref(&()).into_iter().collect())
            }
            Some(_) | None => Standing::Uninstalling,
        };
        role.note(asked, &standing);
        Ok(standing)
    }
}

impl Role {
    fn known(&self, noticed: Instant) -> Option<Standing> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .as_ref()
            .filter(|(asked, _)| *asked >= noticed && asked.elapsed() < REMEMBERED)
            .map(|(_, standing)| standing.clone())
    }

    fn note(&self, asked: Instant, standing: &Standing) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = known.as_ref().is_none_or(|(_, before)| before != standing);
        *known = Some((asked, standing.clone()));
        if has_changed && *standing == Standing::Uninstalling {
            tracing::warn!(
                cluster_role = self.name,
                "the ClusterRole that owns what this program makes is gone or being deleted; this \
                 is taken for an uninstallation, and nothing is written any more"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use http::{Request, Response, StatusCode};
    use kube::client::Body;

    /// An API server that has the ClusterRole for as long as nobody deletes it.
    #[derive(Clone, Default)]
    struct ApiServer {
        is_deleted: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
    }

    impl ApiServer {
        fn owner(&self) -> Owner {
            let server = self.clone();
            let service = tower::service_fn(move |_: Request<Body>| {
                let answer = server.answer();
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            Owner::cluster_role(Client::new(service, "default"), "bulkhead-ca")
        }

        fn answer(&self) -> Response<Body> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (status, body) = if self.is_deleted.load(Ordering::Relaxed) {
                let body = serde_json::json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "not found", "reason": "NotFound", "code": 404,
                });
                (StatusCode::NOT_FOUND, body)
            } else {
                let body = serde_json::json!({
                    "kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1",
                    "metadata": {"name": "bulkhead-ca", "uid": "1"}, "rules": [],
                });
                (StatusCode::OK, body)
            };
            Response::builder()
                .status(status)
                .body(Body::from(body.to_string().into_bytes()))
                .expect("a status and a body make an answer")
        }
    }

    #[tokio::test]
    async fn what_vanished_with_its_owner_is_not_made_again_for_the_owner_that_was() {
        let server = ApiServer::default();
        let owner = server.owner();
        let before = owner.standing().await.unwrap();
        assert!(matches!(before, Standing::Owned(owners) if owners.len() == 1));

        server.is_deleted.store(true, Ordering::Relaxed);
        let noticed = Instant::now();
        let after = owner.standing_since(noticed).await.unwrap();
        assert_eq!(after, Standing::Uninstalling);
        assert_eq!(owner.standing().await.unwrap(), Standing::Uninstalling);
    }

    #[tokio::test]
    async fn many_that_are_missing_at_once_ask_once() {
        let server = ApiServer::default();
        let owner = server.owner();
        let noticed = Instant::now();
        for _ in 0..10 {
            owner.standing_since(noticed).await.unwrap();
        }
        // A second may pass between two of them where the machine is busy.
        let asked = server.asked.load(Ordering::Relaxed);
        assert!(asked < 10, "asked {asked} times");
    }
}
