//! JWT-SVIDs for workloads: authenticate, vet, sign, note.
//!
//! A token is for the caller and nobody else, for the audiences that it names,
//! and short: whoever gets to see one can show it until it expires.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::jwt::{Audiences, Claims, JwtAuthorities, JwtError};
use bulkhead_proto::workload_tokens::{
    JwtBundleRequest, JwtBundleResponse, MintJwtSvidRequest, MintJwtSvidResponse, WorkloadTokens,
};
use bulkhead_runtime::clock::Clock;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::admission::Admission;
use crate::audit::Record;
use crate::claims as callers;
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::server::Peer;
use crate::service::Refusal;

/// How long a token is valid for a caller without a wish, and at most.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// The shortest that is worth sending.
const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// The token service.
pub struct TokenService {
    pub admission: Admission,
    pub issuer: Arc<dyn Issuer>,
    /// Who the tokens say that they are from, where OpenID Connect finds the
    /// keys there.
    pub token_issuer: Option<String>,
    pub trust_domain: TrustDomain,
    pub clock: Clock,
    pub metrics: Metrics,
    pub keys: KnownKeys,
}

/// The key set of the bundle document that there was last: reading one takes
/// longer than all the rest of a call for it.
#[derive(Debug, Default)]
pub struct KnownKeys(ArcSwapOption<(Arc<str>, String)>);

impl KnownKeys {
    fn of(&self, trust_domain: &TrustDomain, document: &Arc<str>) -> Result<String, JwtError> {
        if let Some(known) = &*self.0.load()
            && Arc::ptr_eq(&known.0, document)
        {
            return Ok(known.1.clone());
        }
        let keys = authorities(trust_domain, document)?.to_json();
        let known = (Arc::clone(document), keys.clone());
        self.0.store(Some(Arc::new(known)));
        Ok(keys)
    }
}

/// A signed token, and what is noted of it.
struct Minted {
    token: Zeroizing<String>,
    key_id: String,
    audiences: Audiences,
    not_after: SystemTime,
}

impl TokenService {
    /// The call as one paragraph.
    async fn mint(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        request: MintJwtSvidRequest,
        record: &mut Record,
    ) -> Result<Minted, Refusal> {
        let caller = self.admission.authenticate(metadata, peer, record).await?;
        let _turn = self
            .admission
            .turn(&caller, caller.id().as_str(), record)
            .await?;
        let audiences = Audiences::new(request.audiences)?;
        let lifetime = match request.lifetime {
            0 => DEFAULT_LIFETIME,
            seconds => Duration::from_secs(seconds.into()).clamp(MIN_LIFETIME, MAX_LIFETIME),
        };
        let key = self.issuer.jwt_signer()?;
        let issued_at = self.clock.now();
        let claims = Claims {
            id: caller.id(),
            audiences: &audiences,
            issued_at,
            lifetime,
            issuer: self.token_issuer.as_deref(),
        };
        Ok(Minted {
            token: key.sign(&claims).map_err(Refusal::Token)?,
            key_id: key.id().to_owned(),
            audiences,
            not_after: issued_at + lifetime,
        })
    }

    async fn bundle(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<String, Refusal> {
        let caller = self.admission.authenticate(metadata, peer, record).await?;
        let turn = self.admission.turn(&caller, caller.id().as_str(), record);
        let _turn = turn.await?;
        let document = self.issuer.bundle_document().borrow().clone();
        Ok(self.keys.of(&self.trust_domain, &document)?)
    }
}

/// The keys of JWT-SVIDs in a bundle document.
pub(crate) fn authorities(
    trust_domain: &TrustDomain,
    document: &str,
) -> Result<JwtAuthorities, JwtError> {
    JwtAuthorities::from_json(trust_domain.clone(), document)
}

#[tonic::async_trait]
impl WorkloadTokens for TokenService {
    async fn mint_jwt_svid(
        &self,
        request: Request<MintJwtSvidRequest>,
    ) -> Result<Response<MintJwtSvidResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let peer = Peer::of_call(&extensions)?;
        let said = callers::Claims::read(&metadata);
        let mut record = Record::begin(peer.address(), said, &self.metrics);
        match self.mint(&metadata, peer, message, &mut record).await {
            Ok(minted) => {
                record.token_issued(&minted.key_id, &minted.audiences, minted.not_after);
                let token = minted.token.as_str().to_owned();
                Ok(Response::new(MintJwtSvidResponse { token }))
            }
            Err(refusal) => {
                let status = refusal.to_status(record.id());
                record.refused(&refusal);
                Err(status)
            }
        }
    }

    async fn jwt_bundle(
        &self,
        request: Request<JwtBundleRequest>,
    ) -> Result<Response<JwtBundleResponse>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        let peer = Peer::of_call(&extensions)?;
        let said = callers::Claims::read(&metadata);
        let mut record = Record::begin(peer.address(), said, &self.metrics);
        match self.bundle(&metadata, peer, &mut record).await {
            Ok(jwks) => {
                record.told();
                Ok(Response::new(JwtBundleResponse { jwks }))
            }
            Err(refusal) => {
                let status = refusal.to_status(record.id());
                record.refused(&refusal);
                Err(status)
            }
        }
    }
}
