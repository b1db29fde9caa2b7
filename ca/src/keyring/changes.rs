//! The steps of a rotation, taken on keys and certificates. None is of effect
//! before the keyring is stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::key::PrivateKey;

use super::{IntermediateMaterial, Keyring, RootMaterial, describe};
use crate::config::Lifetimes;
use crate::issuer::status::AuthorityState as State;
use crate::rotation::Step;
use crate::rotation::slots::{self, Automatic, Intermediate, Root, TokenKey};
use crate::store::StoreError;
use crate::upstream::{SignedChain, SignedServing};

/// How long a key of JWT-SVIDs is good for, where intermediates are not good
/// for less.
const TOKEN_KEY_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What an upstream signed for this CA itself.
#[derive(Clone, Debug)]
pub enum FromUpstream {
    /// An intermediate with this key, which signs leaves.
    Intermediate {
        key: PrivateKey,
        signed: SignedChain,
    },
    /// This server's own certificate, where the upstream signs each leaf.
    Own(SignedServing),
}

impl Keyring {
    /// Takes a step of a CA whose roots are its own.
    pub fn take(
        &mut self,
        step: &Step,
        lifetimes: &Lifetimes,
        ordered: Option<u64>,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        match *step {
            Step::Begin => {
                let root = self.make_root(State::Active, lifetimes.root, now)?;
                self.make_intermediate(root, State::Active, lifetimes.intermediate, now)?;
                self.make_token_key(lifetimes, now)?;
                self.slots.allow_leaf_life(lifetimes.max);
                self.slots.bundle_changed(now);
            }
            Step::MakeRoot {
                generation,
                automatic,
            } => {
                self.make_root(State::Prepared, lifetimes.root, now)?;
                // Nobody is above this CA: an upstream that comes back is new.
                self.slots.upstream = None;
                self.slots.automatic = automatic.then_some(Automatic {
                    generation,
                    ordered,
                });
            }
            Step::MakeIntermediate { root } => {
                self.make_intermediate(root, State::Published, lifetimes.intermediate, now)?;
            }
            Step::MakeTokenKey => self.make_token_key(lifetimes, now)?,
            Step::PublishRoot { generation } => self.slots.publish_root(generation, now),
            Step::ActivateRoot { root, intermediate } => {
                self.slots.activate_root(root, intermediate, now);
                self.slots.allow_leaf_life(lifetimes.max);
            }
            Step::RetireRoot { generation } => self.slots.retire_root(generation, now),
            Step::ActivateIntermediate { generation } => {
                self.slots.activate_intermediate(generation, now);
            }
            Step::RetireIntermediate { generation } => self.slots.retire_intermediate(generation),
            Step::AllowLeafLife { life } => self.slots.allow_leaf_life(life),
            Step::ActivateTokenKey { generation } => {
                self.slots.activate_token_key(generation, now);
            }
            Step::RetireTokenKey { generation } => self.slots.retire_token_key(generation, now),
            Step::AskUpstream | Step::Wait(_) => {}
        }
        self.destroy_what_is_gone();
        Ok(())
    }

    /// Takes what an upstream signed that is named so. What is under a root that
    /// nobody has heard of waits until that root is published and held.
    pub fn take_signed(
        &mut self,
        signed: FromUpstream,
        origin: String,
        ordered: Option<u64>,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let Taken {
            certificate,
            material,
            not_after,
            root,
            roots,
            own,
        } = self.read_signed(signed)?;
        let is_first = self.slots.is_empty();
        let signing = self.slot_of_upstream_root(&root, is_first, now);
        self.slots.upstream = Some(origin);
        for root in &mut self.slots.roots {
            root.listed = false;
        }
        for certificate in roots.certificates() {
            let generation = self.slot_of_upstream_root(certificate, is_first, now);
            for root in &mut self.slots.roots {
                root.listed |= root.authority.generation == generation;
            }
        }
        let generation = self.slots.next_intermediate();
        let state = if is_first {
            State::Active
        } else {
            State::Published
        };
        let mut slot = describe(generation, state, &certificate, now);
        slot.not_after = not_after;
        self.slots.intermediates.push(Intermediate {
            authority: slot,
            root: signing,
            own,
        });
        self.intermediates.insert(generation, material);
        let active = self
            .slots
            .active_root()
            .map(|root| root.authority.generation);
        // It may also have gone on to another root, and back again.
        let begun = self.slots.automatic.map(|begun| begun.generation);
        if active != Some(signing) || begun.is_some_and(|begun| begun != signing) {
            self.slots.automatic = Some(Automatic {
                generation: signing,
                ordered,
            });
        }
        if is_first {
            self.slots.bundle_changed(now);
        }
        self.destroy_what_is_gone();
        Ok(())
    }

    fn read_signed(&self, signed: FromUpstream) -> Result<Taken, StoreError> {
        match signed {
            FromUpstream::Intermediate { key, signed } => {
                let SignedChain { chain, roots } = signed;
                let authority =
                    Authority::from_parts(&self.trust_domain, chain, key.clone(), &roots)?;
                let chain = authority.intermediates().to_vec();
                Ok(Taken {
                    certificate: authority.certificate().clone(),
                    material: IntermediateMaterial { chain, key },
                    not_after: authority.not_after(),
                    root: authority.root().clone(),
                    roots,
                    own: false,
                })
            }
            FromUpstream::Own(SignedServing { certificate, roots }) => {
                let root = roots.certificates()[0].clone();
                let (chain, key) = (certificate.chain().to_vec(), certificate.key().clone());
                Ok(Taken {
                    certificate: certificate.leaf().clone(),
                    material: IntermediateMaterial { chain, key },
                    not_after: certificate.not_after().min(root.not_after()),
                    root,
                    roots,
                    own: true,
                })
            }
        }
    }

    /// The generation of a root that an upstream told of. The first that is told
    /// of signs at once: nobody trusts another yet.
    fn slot_of_upstream_root(
        &mut self,
        certificate: &Certificate,
        is_first: bool,
        now: SystemTime,
    ) -> u64 {
        let known = self
            .roots
            .iter()
            .find(|(_, root)| root.certificate == *certificate);
        if let Some((generation, _)) = known {
            return *generation;
        }
        let generation = self.slots.next_root();
        let state = match (is_first, self.slots.active_root()) {
            (true, None) => State::Active,
            (true, Some(_)) => State::Published,
            (false, _) => State::Prepared,
        };
        self.slots.roots.push(Root {
            authority: describe(generation, state, certificate, now),
            has_key: false,
            listed: false,
            leaf_life: None,
        });
        let certificate = certificate.clone();
        self.roots.insert(
            generation,
            RootMaterial {
                certificate,
                key: None,
            },
        );
        generation
    }

    fn make_root(
        &mut self,
        state: State,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<u64, StoreError> {
        let made = Authority::new_root(&self.trust_domain, lifetime, now)?;
        let generation = self.slots.next_root();
        self.slots.roots.push(Root {
            authority: describe(generation, state, made.certificate(), now),
            has_key: true,
            listed: false,
            leaf_life: None,
        });
        let material = RootMaterial {
            certificate: made.certificate().clone(),
            key: Some(made.key().clone()),
        };
        self.roots.insert(generation, material);
        Ok(generation)
    }

    fn make_intermediate(
        &mut self,
        root: u64,
        state: State,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let made = self.root_authority(root)?.new_intermediate(lifetime, now)?;
        let generation = self.slots.next_intermediate();
        self.slots.intermediates.push(Intermediate {
            authority: describe(generation, state, made.certificate(), now),
            root,
            own: false,
        });
        let material = IntermediateMaterial {
            chain: made.intermediates().to_vec(),
            key: made.key().clone(),
        };
        self.intermediates.insert(generation, material);
        Ok(())
    }

    /// The first signs at once: no token of this trust domain is about yet.
    fn make_token_key(&mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), StoreError> {
        let key = JwtKey::generate()?;
        let generation = self.slots.next_token_key();
        let state = match self.slots.active_token_key() {
            None => State::Active,
            Some(_) => State::Published,
        };
        let public_key = key.private_key().public_key();
        self.slots.token_keys.push(TokenKey {
            authority: slots::Authority {
                generation,
                state,
                fingerprint: public_key.fingerprint().to_string(),
                serial: key.id().to_owned(),
                key_type: public_key.kind().to_string(),
                made: now,
                not_before: now,
                not_after: now + TOKEN_KEY_LIFE.min(lifetimes.intermediate),
                stopped: None,
            },
            public: key.jwk().clone(),
        });
        self.token_keys.insert(generation, Arc::new(key));
        self.slots.bundle_changed(now);
        Ok(())
    }

    /// Keys are wiped from memory here, and are gone from the store with the
    /// next write.
    fn destroy_what_is_gone(&mut self) {
        let Self {
            slots,
            roots,
            intermediates,
            token_keys,
            ..
        } = self;
        let is_live = |authority: &slots::Authority| !authority.is_gone();
        roots.retain(|generation, _| {
            slots
                .root(*generation)
                .is_some_and(|root| is_live(&root.authority))
        });
        intermediates.retain(|generation, _| {
            slots.intermediates.iter().any(|intermediate| {
                intermediate.authority.generation == *generation && is_live(&intermediate.authority)
            })
        });
        token_keys.retain(|generation, _| {
            slots
                .token_keys
                .iter()
                .any(|key| key.authority.generation == *generation && key.has_private_key())
        });
    }
}

/// What is to be kept of what an upstream signed.
struct Taken {
    certificate: Certificate,
    material: IntermediateMaterial,
    not_after: SystemTime,
    root: Certificate,
    roots: Roots,
    own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::wanted_root;
    use bulkhead_core::sidecar::default_trust_domain;

    /// Trust Domain and Bundle 4.1.1, also where the clock stands still or is set back.
    #[test]
    fn the_sequence_grows_with_every_change_of_the_bundle() {
        let hour = Duration::from_secs(3600);
        let lifetimes = Lifetimes {
            default: hour,
            max: hour,
            root: 1000 * hour,
            intermediate: 100 * hour,
        };
        let begin = SystemTime::UNIX_EPOCH + 500_000 * hour;
        let mut keyring = Keyring::empty(default_trust_domain());
        let mut told = None;
        for (step, now) in [
            (Step::Begin, begin),
            (Step::MakeTokenKey, begin),
            (Step::ActivateTokenKey { generation: 2 }, begin - hour),
            (Step::RetireTokenKey { generation: 1 }, begin - hour),
            (
                Step::MakeRoot {
                    generation: 2,
                    automatic: false,
                },
                begin,
            ),
            (Step::PublishRoot { generation: 2 }, begin - hour),
            (Step::MakeIntermediate { root: 2 }, begin),
            (
                Step::ActivateRoot {
                    root: 2,
                    intermediate: 2,
                },
                begin,
            ),
            (Step::RetireRoot { generation: 1 }, begin + hour),
        ] {
            keyring.take(&step, &lifetimes, None, now).unwrap();
            let document = keyring.document().unwrap();
            let authorities = (document.x509_authorities, document.jwt_authorities);
            if let Some((before, sequence)) = told.take() {
                let is_another = before != authorities;
                assert!(!is_another || document.sequence > sequence, "{step:?}");
                assert!(document.sequence >= sequence, "{step:?}");
            }
            told = Some((authorities, document.sequence));
        }
    }

    #[test]
    fn an_upstream_that_goes_back_to_the_root_that_signs_takes_its_rotation_back() {
        let domain = default_trust_domain();
        let hour = Duration::from_secs(3600);
        let now = SystemTime::UNIX_EPOCH + 500_000 * hour;
        let root = || Authority::new_root(&domain, 1000 * hour, now).unwrap();
        let (old, new) = (root(), root());
        let mut keyring = Keyring::empty(domain.clone());
        let mut sign = |root: &Authority| {
            let key = PrivateKey::generate().unwrap();
            let made = root.new_intermediate_for(&key, 100 * hour, now).unwrap();
            let signed = SignedChain {
                chain: made.intermediates().to_vec(),
                roots: Roots::new([root.certificate().clone()]).unwrap(),
            };
            let signed = FromUpstream::Intermediate { key, signed };
            let origin = "test".to_owned();
            keyring.take_signed(signed, origin, None, now).unwrap();
            wanted_root(keyring.slots(), None)
        };
        assert_eq!(sign(&old), 1);
        assert_eq!(sign(&new), 2, "a rotation begins");
        assert_eq!(sign(&old), 1, "and is taken back");
    }
}
