//! The authorities of a trust domain with their keys, as they are stored.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | which authorities there are and where in its life each is: [`Slots`] |
//! | `root-1.crt`, `root-1.key` | a root; no key where an upstream issuer has it |
//! | `intermediate-2.crt`, `intermediate-2.key` | an intermediate, and what is between it and its root; or, where an upstream signs each leaf, this server's own certificate |
//! | `jwt-3.key` | a key of JWT-SVIDs, until it has stopped signing |
//! | `roots.pem`, `bundle.json` | what workloads are told to trust; no secrets |
//!
//! The number is the generation. Whatever is retired has no files any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::document::{JwtAuthority, TrustBundleDocument};
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::key::{KeyError, PrivateKey};
use bulkhead_pki::serving::ServingCertificate;
use zeroize::Zeroizing;

use crate::issuer::status::AuthorityState as State;
use crate::rotation::slots::{self, Slot, Slots};
use crate::store::{BUNDLE, Files, ROOTS, StoreError};

pub use self::changes::FromUpstream;

mod changes;
mod first_layout;

/// The file that says what the others are.
const STATE: &str = "state.json";

/// The longest chain of signing certificates, in bytes of PEM.
const MAX_CHAIN_PEM: usize = 64 * 1024;

/// How often consumers of the bundle should look at it again.
const REFRESH_HINT: Duration = Duration::from_secs(300);

/// All authorities, with the keys that are there.
#[derive(Debug)]
pub struct Keyring {
    trust_domain: TrustDomain,
    slots: Slots,
    /// By generation, as are the others: what is not retired.
    roots: BTreeMap<u64, RootMaterial>,
    intermediates: BTreeMap<u64, IntermediateMaterial>,
    token_keys: BTreeMap<u64, Arc<JwtKey>>,
}

#[derive(Debug)]
struct RootMaterial {
    certificate: Certificate,
    key: Option<PrivateKey>,
}

#[derive(Debug)]
struct IntermediateMaterial {
    /// Its certificate first, then those above it, without the root.
    chain: Vec<Certificate>,
    key: PrivateKey,
}

/// What signs for workloads.
pub enum Signs {
    /// An intermediate that is here.
    Here(Box<Authority>),
    /// An upstream, each leaf. It signed this server's own certificate too, under
    /// the root that leaves are to be under.
    Upstream(Signed<ServingCertificate>),
}

/// What a store says of its authorities, for whoever needs no keys.
pub fn slots_of(files: &Files) -> Result<Slots, StoreError> {
    serde_json::from_str(text(files, STATE)?).map_err(StoreError::State)
}

impl Keyring {
    /// A trust domain that has nothing yet.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            slots: Slots::default(),
            roots: BTreeMap::new(),
            intermediates: BTreeMap::new(),
            token_keys: BTreeMap::new(),
        }
    }

    /// Reads what is stored, in this layout or in the first one.
    pub fn from_files(trust_domain: &TrustDomain, files: &Files) -> Result<Self, StoreError> {
        if first_layout::is(files) {
            return first_layout::read(trust_domain, files);
        }
        let mut keyring = Self {
            slots: slots_of(files)?,
            ..Self::empty(trust_domain.clone())
        };
        for root in live(&keyring.slots.roots) {
            let name = Name::of("root", root);
            let material = RootMaterial {
                certificate: one(chain(files, &name.certificate())?, &name)?,
                key: optional_key(files, &name, root_has_key(&keyring.slots, root))?,
            };
            keyring.roots.insert(root, material);
        }
        for intermediate in live(&keyring.slots.intermediates) {
            let name = Name::of("intermediate", intermediate);
            let material = IntermediateMaterial {
                chain: chain(files, &name.certificate())?,
                key: PrivateKey::from_pem(text(files, &name.key())?)?,
            };
            keyring.intermediates.insert(intermediate, material);
        }
        for token_key in &keyring.slots.token_keys {
            let generation = token_key.authority.generation;
            if token_key.has_private_key() {
                let name = Name::of("jwt", generation);
                let key = JwtKey::new(PrivateKey::from_pem(text(files, &name.key())?)?)?;
                keyring.token_keys.insert(generation, Arc::new(key));
            }
        }
        keyring.check()?;
        Ok(keyring)
    }

    /// What is to be stored. What is retired is not in it, and is gone from the
    /// store when this replaces what was there.
    pub fn to_files(&self) -> Result<Files, StoreError> {
        let mut files = Files::new();
        let mut add = |name: String, text| files.insert(name, text);
        let state = serde_json::to_string_pretty(&self.slots).map_err(StoreError::State)?;
        add(STATE.to_owned(), Zeroizing::new(state));
        for (generation, root) in &self.roots {
            let name = Name::of("root", *generation);
            add(
                name.certificate(),
                Zeroizing::new(root.certificate.to_pem()),
            );
            if let Some(key) = &root.key {
                add(name.key(), key.to_pem()?);
            }
        }
        for (generation, intermediate) in &self.intermediates {
            let name = Name::of("intermediate", *generation);
            let chain = intermediate.chain.iter().map(Certificate::to_pem);
            add(name.certificate(), Zeroizing::new(chain.collect()));
            add(name.key(), intermediate.key.to_pem()?);
        }
        for (generation, key) in &self.token_keys {
            let name = Name::of("jwt", *generation);
            add(name.key(), key.private_key().to_pem()?);
        }
        let bundle = self.bundle()?;
        add(ROOTS.to_owned(), Zeroizing::new(bundle.to_pem()));
        add(
            BUNDLE.to_owned(),
            Zeroizing::new(self.document()?.to_json()?),
        );
        Ok(files)
    }

    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// What signs now.
    pub fn signs(&self) -> Result<Signs, StoreError> {
        let slot = self.slots.active_intermediate();
        match slot.ok_or(StoreError::NothingSigns)? {
            own if own.own => Ok(Signs::Upstream(self.own(own)?)),
            slot => Ok(Signs::Here(Box::new(self.intermediate(slot)?))),
        }
    }

    /// The intermediate that signs now; none where an upstream signs each leaf.
    pub fn signer(&self) -> Result<Authority, StoreError> {
        match self.signs()? {
            Signs::Here(authority) => Ok(*authority),
            Signs::Upstream(_) => Err(StoreError::NothingSigns),
        }
    }

    /// What signs JWT-SVIDs now; none in a store that is of the first layout.
    pub fn token_signer(&self) -> Option<Arc<JwtKey>> {
        let generation = self.slots.active_token_key()?.authority.generation;
        self.token_keys.get(&generation).cloned()
    }

    /// What workloads are told to trust: the root that signs is the first.
    pub fn bundle(&self) -> Result<TrustBundle, StoreError> {
        let roots = self.trusted_roots().cloned();
        let bundle = TrustBundle::new(self.trust_domain.clone(), Roots::new(roots)?);
        Ok(bundle.with_sequence(self.slots.sequence))
    }

    /// The same for other programs, with the keys of JWT-SVIDs.
    pub fn document(&self) -> Result<TrustBundleDocument, StoreError> {
        let keys = self.slots.token_keys.iter();
        let keys = keys.filter(|key| key.authority.is_trusted());
        let jwt_authorities = keys.map(|key| {
            Ok::<_, KeyError>(JwtAuthority {
                key_id: key.authority.serial.clone(),
                key: key.public.public_key()?,
            })
        });
        Ok(TrustBundleDocument {
            x509_authorities: self.trusted_roots().cloned().collect(),
            jwt_authorities: jwt_authorities.collect::<Result<_, _>>()?,
            sequence: self.slots.sequence,
            refresh_hint: Some(REFRESH_HINT),
        })
    }

    /// The certificate of a root that is not retired.
    pub fn root(&self, generation: u64) -> Option<&Certificate> {
        self.roots.get(&generation).map(|root| &root.certificate)
    }

    fn trusted_roots(&self) -> impl Iterator<Item = &Certificate> {
        let trusted = self.slots.trusted_roots();
        trusted.filter_map(|root| self.root(root.authority.generation))
    }

    fn material(
        &self,
        slot: &slots::Intermediate,
    ) -> Result<(&IntermediateMaterial, &Certificate), StoreError> {
        let generation = slot.authority.generation;
        let material = self.intermediates.get(&generation);
        material.zip(self.root(slot.root)).ok_or_else(|| {
            let name = Name::of("intermediate", generation);
            StoreError::Missing(name.certificate())
        })
    }

    fn own(&self, slot: &slots::Intermediate) -> Result<Signed<ServingCertificate>, StoreError> {
        let (material, root) = self.material(slot)?;
        let (chain, key) = (material.chain.clone(), material.key.clone());
        Ok(Signed {
            certificate: ServingCertificate::new(chain, key)?,
            root: root.clone(),
        })
    }

    fn intermediate(&self, slot: &slots::Intermediate) -> Result<Authority, StoreError> {
        let (material, root) = self.material(slot)?;
        let roots = Roots::new([root.clone()])?;
        let (chain, key) = (material.chain.clone(), material.key.clone());
        Ok(Authority::from_parts(
            &self.trust_domain,
            chain,
            key,
            &roots,
        )?)
    }

    fn root_authority(&self, generation: u64) -> Result<Authority, StoreError> {
        let root = self.roots.get(&generation);
        let Some((certificate, Some(key))) = root.map(|root| (&root.certificate, &root.key)) else {
            return Err(StoreError::Missing(format!("root-{generation}.key")));
        };
        let roots = Roots::new([certificate.clone()])?;
        let chain = vec![certificate.clone()];
        Ok(Authority::from_parts(
            &self.trust_domain,
            chain,
            key.clone(),
            &roots,
        )?)
    }

    /// Everything fits together, or nothing of it is used.
    fn check(&self) -> Result<(), StoreError> {
        for slot in &self.slots.intermediates {
            match (slot.authority.is_gone(), slot.own) {
                (true, _) => {}
                (false, true) => {
                    self.own(slot)?;
                }
                (false, false) => {
                    self.intermediate(slot)?;
                }
            }
        }
        for slot in &self.slots.roots {
            let generation = slot.authority.generation;
            if slot.has_key && !slot.authority.is_gone() {
                self.root_authority(generation)?;
            }
            let certificate = self.root(generation);
            if certificate
                .is_some_and(|root| root.fingerprint().to_string() != slot.authority.fingerprint)
            {
                return Err(StoreError::Foreign(format!("root-{generation}.crt")));
            }
        }
        Ok(())
    }
}

/// The names of an authority's files.
struct Name(String);

impl Name {
    fn of(kind: &str, generation: u64) -> Self {
        Self(format!("{kind}-{generation}"))
    }

    fn certificate(&self) -> String {
        format!("{}.crt", self.0)
    }

    fn key(&self) -> String {
        format!("{}.key", self.0)
    }
}

/// What a slot says of a certificate.
fn describe(
    generation: u64,
    state: State,
    certificate: &Certificate,
    made: SystemTime,
) -> slots::Authority {
    slots::Authority {
        generation,
        state,
        fingerprint: certificate.fingerprint().to_string(),
        serial: certificate.serial(),
        key_type: certificate
            .public_key()
            .map_or_else(|error| error.to_string(), |key| key.kind().to_string()),
        made,
        not_before: certificate.not_before(),
        not_after: certificate.not_after(),
        stopped: None,
    }
}

fn live<S: Slot>(slots: &[S]) -> Vec<u64> {
    let live = slots.iter().map(Slot::authority);
    live.filter(|authority| !authority.is_gone())
        .map(|authority| authority.generation)
        .collect()
}

fn root_has_key(slots: &Slots, generation: u64) -> bool {
    slots.root(generation).is_some_and(|root| root.has_key)
}

fn text<'a>(files: &'a Files, name: &str) -> Result<&'a str, StoreError> {
    let text = files.get(name);
    text.map(|text| text.as_str())
        .ok_or_else(|| StoreError::Missing(name.to_owned()))
}

fn chain(files: &Files, name: &str) -> Result<Vec<Certificate>, StoreError> {
    Ok(Certificate::all_from_pem(
        text(files, name)?,
        MAX_CHAIN_PEM,
    )?)
}

fn one(certificates: Vec<Certificate>, name: &Name) -> Result<Certificate, StoreError> {
    let mut certificates = certificates.into_iter();
    match (certificates.next(), certificates.next()) {
        (Some(certificate), None) => Ok(certificate),
        _ => Err(StoreError::Foreign(name.certificate())),
    }
}

fn optional_key(
    files: &Files,
    name: &Name,
    is_there: bool,
) -> Result<Option<PrivateKey>, StoreError> {
    if !is_there {
        return Ok(None);
    }
    Ok(Some(PrivateKey::from_pem(text(files, &name.key())?)?))
}
