//! The layout that stores had before there was more than one of anything:
//! `root.crt`, `root.key`, `intermediate.crt`, `intermediate.key`, `roots.pem`.
//! It is read; what is written is of today's.

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::BACKDATE;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::key::PrivateKey;

use super::{IntermediateMaterial, Keyring, RootMaterial, STATE, chain, describe, text};
use crate::issuer::status::AuthorityState as State;
use crate::rotation::slots::{Intermediate, Root};
use crate::store::{Files, ROOTS, StoreError};

const ROOT: (&str, &str) = ("root.crt", "root.key");
const INTERMEDIATE: (&str, &str) = ("intermediate.crt", "intermediate.key");

/// The generation of whatever is there: it is the only one.
const GENERATION: u64 = 1;

pub(super) fn is(files: &Files) -> bool {
    !files.contains_key(STATE) && files.contains_key(ROOT.0)
}

pub(super) fn read(trust_domain: &TrustDomain, files: &Files) -> Result<Keyring, StoreError> {
    let roots = Roots::from_pem(text(files, ROOTS)?)?;
    let own = chain(files, ROOT.0)?;
    let (Some(root), [trusted]) = (own.first(), roots.certificates()) else {
        return Err(StoreError::Foreign(ROOTS.to_owned()));
    };
    if root != trusted {
        return Err(StoreError::Foreign(ROOT.0.to_owned()));
    }
    let mut below = chain(files, INTERMEDIATE.0)?;
    below.retain(|certificate| certificate != root);
    let Some(intermediate) = below.first() else {
        return Err(StoreError::Foreign(INTERMEDIATE.0.to_owned()));
    };
    let mut keyring = Keyring::empty(trust_domain.clone());
    let describe = |certificate: &Certificate| {
        let made = certificate.not_before() + BACKDATE;
        describe(GENERATION, State::Active, certificate, made)
    };
    keyring.slots.roots.push(Root {
        authority: describe(root),
        has_key: true,
        listed: false,
        leaf_life: None,
    });
    keyring.slots.intermediates.push(Intermediate {
        authority: describe(intermediate),
        root: GENERATION,
        own: false,
    });
    // From before bundles had numbers; any number is later.
    keyring.slots.sequence = 1;
    let root = RootMaterial {
        certificate: root.clone(),
        key: Some(PrivateKey::from_pem(text(files, ROOT.1)?)?),
    };
    keyring.roots.insert(GENERATION, root);
    let intermediate = IntermediateMaterial {
        chain: below,
        key: PrivateKey::from_pem(text(files, INTERMEDIATE.1)?)?,
    };
    keyring.intermediates.insert(GENERATION, intermediate);
    keyring.check()?;
    Ok(keyring)
}
