//! A trust domain with its authorities, and a pod with the Workload API.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::jwt::{Audiences, Claims, JwtAuthorities, JwtError, JwtKey};
use bulkhead_pki::key::PrivateKey;
use bulkhead_proto::workload_api::SpiffeWorkloadApiClient;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_workload::credentials::{self, Credentials, Publisher};
use bulkhead_workload::tokens::TokenError;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};
use zeroize::Zeroizing;

use crate::workload_api::tokens::Mint;
use crate::workload_api::{WorkloadApi, bind};

const HOUR: Duration = Duration::from_secs(3600);
/// How long the CA's tokens are valid.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(300);

pub(super) fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(super) fn cart() -> SpiffeId {
    SpiffeId::workload(&domain(), "shop", "cart").unwrap()
}

/// The trust domain, and its CA as the sidecar sees it.
#[derive(Clone)]
pub(in crate::workload_api) struct Mesh {
    pub(super) clock: Clock,
    root: Arc<Authority>,
    /// Roots that are published besides the one that signs.
    others: Arc<Mutex<Vec<bulkhead_pki::certificate::Certificate>>>,
    pub(super) ca: Arc<Mutex<Ca>>,
}

/// What the CA answers about tokens.
pub(super) struct Ca {
    pub(super) keys: Vec<JwtKey>,
    pub(super) is_away: bool,
    pub(super) answers_for: SpiffeId,
    pub(super) minted: usize,
}

impl Mesh {
    pub(in crate::workload_api) fn new() -> Self {
        let clock = Clock::stopped_at(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let root = Authority::new_root(&domain(), 1000 * HOUR, clock.now()).unwrap();
        Self {
            root: Arc::new(root),
            others: Arc::default(),
            ca: Arc::new(Mutex::new(Ca {
                keys: vec![JwtKey::generate().unwrap()],
                is_away: false,
                answers_for: cart(),
                minted: 0,
            })),
            clock,
        }
    }

    /// Puts another root into the trust bundle.
    pub(super) fn publish_another_root(&self) {
        let other = Authority::new_root(&domain(), 1000 * HOUR, self.clock.now()).unwrap();
        let mut others = self.others.lock().unwrap();
        others.push(other.certificate().clone());
    }

    pub(super) fn bundle(&self) -> TrustBundle {
        let mut roots = vec![self.root.certificate().clone()];
        roots.extend(self.others.lock().unwrap().iter().cloned());
        TrustBundle::new(domain(), Roots::new(roots).unwrap())
    }

    /// A new certificate for the cart, an hour long, under an intermediate.
    pub(super) fn identity(&self) -> WorkloadIdentity {
        let now = self.clock.now();
        let key = PrivateKey::generate().unwrap();
        let intermediate = self.root.new_intermediate(100 * HOUR, now).unwrap();
        let chain = intermediate.issue_svid(&cart(), key.public_key(), HOUR, now);
        WorkloadIdentity::new(&cart(), &key, chain.unwrap(), self.bundle(), now).unwrap()
    }
}

#[tonic::async_trait]
impl Mint for Mesh {
    async fn mint(&self, audiences: &Audiences) -> Result<Zeroizing<String>, TokenError> {
        let mut ca = self.ca.lock().unwrap();
        if ca.is_away {
            return Err(away());
        }
        ca.minted += 1;
        let claims = Claims {
            id: &ca.answers_for,
            audiences,
            issued_at: self.clock.now(),
            lifetime: TOKEN_LIFETIME,
            issuer: None,
        };
        Ok(ca.keys.last().unwrap().sign(&claims).unwrap())
    }

    async fn authorities(&self) -> Result<JwtAuthorities, TokenError> {
        let ca = self.ca.lock().unwrap();
        if ca.is_away {
            return Err(away());
        }
        let keys = ca.keys.iter().map(JwtKey::jwk);
        Ok(JwtAuthorities::new(domain(), keys))
    }
}

/// Any error does; what a CA that is away looks like, crates/workload knows.
fn away() -> TokenError {
    JwtError::BundleTooLong.into()
}

/// A pod whose sidecar serves the Workload API.
pub(in crate::workload_api) struct Pod {
    path: PathBuf,
    publisher: Publisher,
    _directory: TempDir,
    _drain: drain::Trigger,
}

impl Pod {
    pub(in crate::workload_api) async fn start(mesh: &Mesh) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = bind(path.to_str().unwrap()).unwrap();
        let (publisher, latest) = credentials::channel();
        let api = WorkloadApi {
            id: cart(),
            latest,
            source: mesh.clone(),
            clock: mesh.clock.clone(),
        };
        let (trigger, watch) = drain::channel();
        tokio::spawn(api.serve(listener, watch));
        Self {
            path,
            publisher,
            _directory: directory,
            _drain: trigger,
        }
    }

    pub(in crate::workload_api) fn path(&self) -> &Path {
        &self.path
    }

    /// Renews the certificate.
    pub(super) fn publish(&self, mesh: &Mesh) {
        self.publish_identity(mesh.identity());
    }

    /// The present certificate with the bundle as it is now.
    pub(super) fn adopt_bundle(&self, mesh: &Mesh) {
        let current = self.publisher.borrow().clone().unwrap();
        let adopted = current
            .identity()
            .with_bundle(mesh.bundle(), mesh.clock.now());
        self.publish_identity(adopted.unwrap());
    }

    pub(super) fn publish_identity(&self, identity: WorkloadIdentity) {
        let credentials = Credentials::new(identity).unwrap();
        self.publisher.send_replace(Some(Arc::new(credentials)));
    }

    pub(super) async fn channel(&self) -> Channel {
        let path = self.path.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(connect).await.unwrap()
    }

    pub(super) async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel().await)
    }
}

/// A request with the security header that often.
pub(super) fn with_header<T>(message: T, values: &[&'static str]) -> Request<T> {
    let mut request = Request::new(message);
    for value in values {
        let value = tonic::metadata::MetadataValue::from_static(value);
        request.metadata_mut().append("workload.spiffe.io", value);
    }
    request
}

pub(super) fn secured<T>(message: T) -> Request<T> {
    with_header(message, &["true"])
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}
