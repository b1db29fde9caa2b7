//! The calls. Each stream tells all there is at once, and all of it again when
//! any of it changes (SPIFFE Workload API, 4.3).

use std::pin::Pin;
use std::sync::Arc;

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::jwt::{Audiences, JwtAuthorities};
use bulkhead_proto::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    SpiffeWorkloadApi, ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest,
    X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse, claims,
};
use bulkhead_runtime::clock::Clock;
use futures::Stream;
use futures::stream;
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use super::tokens::{Mint, Tokens, ValidateError};
use crate::credentials::{Credentials, Latest};

pub(super) struct Service<M> {
    pub(super) id: SpiffeId,
    pub(super) latest: Latest,
    pub(super) tokens: Arc<Tokens<M>>,
    pub(super) clock: Clock,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<M: Mint> Service<M> {
    /// What is told of the credentials, now and whenever it is something else.
    /// There is nothing to tell before there are any, nor once they have expired
    /// (SPIFFE Workload Endpoint, 6).
    fn follow<T: 'static>(
        &self,
        tell: fn(&WorkloadIdentity) -> Result<T, Status>,
        is_same: fn(&WorkloadIdentity, &WorkloadIdentity) -> bool,
    ) -> Result<Response<Messages<T>>, Status> {
        let latest = self.latest.clone();
        let now = self.clock.now();
        if latest
            .get()
            .is_none_or(|latest| latest.identity().not_after() <= now)
        {
            return Err(Status::unavailable(
                "there is no valid certificate yet; try again",
            ));
        }
        let messages = stream::unfold((latest, None), move |(mut latest, told)| async move {
            loop {
                let next: Arc<Credentials> = match &told {
                    None => latest.get_and_mark()?,
                    Some(_) => latest.changed().await?,
                };
                let is_told = told.as_ref().is_some_and(|told: &Arc<Credentials>| {
                    is_same(told.identity(), next.identity())
                });
                if !is_told {
                    return Some((tell(next.identity()), (latest, Some(next))));
                }
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

#[tonic::async_trait]
impl<M: Mint> SpiffeWorkloadApi for Service<M> {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.follow(svid, |one, other| {
            one.chain() == other.chain() && has_same_roots(one, other)
        })
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.follow(bundles, has_same_roots)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let request = request.into_inner();
        let audiences = Audiences::new(request.audience);
        let audiences = audiences.map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !request.spiffe_id.is_empty() {
            let wanted = SpiffeId::parse(&request.spiffe_id);
            let wanted = wanted.map_err(|error| Status::invalid_argument(error.to_string()))?;
            if wanted != self.id {
                let message = format!("this workload is {} and nobody else", self.id);
                return Err(Status::permission_denied(message));
            }
        }
        let token = self.tokens.token(&self.id, &audiences).await;
        let token = token.map_err(|error| {
            tracing::warn!(%error, "the application asked for a token, and there is none");
            Status::unavailable("no token can be had now; the sidecar's log says why")
        })?;
        Ok(Response::new(JwtsvidResponse {
            svids: vec![Jwtsvid {
                spiffe_id: self.id.to_string(),
                svid: token.as_str().to_owned(),
                // One identity needs nothing to tell it from others.
                hint: String::new(),
            }],
        }))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let mut authorities = self.tokens.authorities();
        if authorities.borrow().is_none() {
            return Err(Status::unavailable(
                "the CA has not said yet what tokens are verified with; try again",
            ));
        }
        authorities.mark_changed();
        let messages = stream::unfold(authorities, |mut authorities| async move {
            authorities.changed().await.ok()?;
            let known = authorities.borrow_and_update().clone()?;
            Some((Ok(jwt_bundles(&known)), authorities))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let request = request.into_inner();
        for (name, text) in [("audience", &request.audience), ("svid", &request.svid)] {
            if text.is_empty() {
                return Err(Status::invalid_argument(format!("{name} must be set")));
            }
        }
        let validated = self.tokens.validate(&request.svid, &request.audience);
        match validated.await {
            Ok(svid) => Ok(Response::new(ValidateJwtsvidResponse {
                spiffe_id: svid.id().to_string(),
                claims: Some(claims(svid.claims())),
            })),
            Err(ValidateError::Token(error)) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => {
                tracing::warn!(%error, "a token cannot be validated now");
                Err(Status::unavailable(
                    "what tokens are verified with cannot be had now; the sidecar's log says why",
                ))
            }
        }
    }
}

/// The workload's one SVID, with its key and its trust domain's bundle.
fn svid(identity: &WorkloadIdentity) -> Result<X509svidResponse, Status> {
    let key = identity.private_key().to_der().map_err(|error| {
        tracing::error!(%error, "the workload's own key cannot be given to its application");
        Status::internal("the key cannot be written; the sidecar's log says why")
    })?;
    Ok(X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: identity.id().to_string(),
            x509_svid: concat(identity.chain().to_der().iter()),
            x509_svid_key: key.to_vec(),
            bundle: roots(identity),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: Default::default(),
    })
}

fn bundles(identity: &WorkloadIdentity) -> Result<X509BundlesResponse, Status> {
    let domain = identity.bundle().trust_domain().id().to_string();
    Ok(X509BundlesResponse {
        crl: Vec::new(),
        bundles: [(domain, roots(identity))].into(),
    })
}

/// The roots in DER, one after the other.
fn roots(identity: &WorkloadIdentity) -> Vec<u8> {
    let roots = identity.bundle().roots().certificates();
    concat(roots.iter().map(Certificate::der))
}

fn concat<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'static>>) -> Vec<u8> {
    certificates.flat_map(|der| der.iter().copied()).collect()
}

/// In the same order: the first is the one that signs.
fn has_same_roots(one: &WorkloadIdentity, other: &WorkloadIdentity) -> bool {
    one.bundle().roots().certificates() == other.bundle().roots().certificates()
}

fn jwt_bundles(authorities: &JwtAuthorities) -> JwtBundlesResponse {
    let domain = authorities.trust_domain().id().to_string();
    JwtBundlesResponse {
        bundles: [(domain, authorities.to_json().into_bytes())].into(),
    }
}
