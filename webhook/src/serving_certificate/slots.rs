//! A CA of our own and the certificate that it issued to us, with a plan that
//! renews both in time.
//!
//! ```text
//!  CA      ─ next ───▶ active ───▶ retired ───▶ gone
//!            published  signs       still in the bundle,
//!            in the     the         its key is gone
//!            bundle     certificate
//! ```
//!
//! The next CA is published a while before it signs anything, and a retired one
//! stays in the bundle until it expires, so at every moment the bundle covers
//! whatever any replica serves.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_pki::authority::BACKDATE;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::serving::{ServerName, ServingAuthority, ServingCertificate};

use super::{Credential, CredentialError, Lifetimes, verify};

/// What people see who look at a CA certificate of ours.
const AUTHORITY_NAME: &str = "Bulkhead webhook";
/// The longest list of retired CAs that is read, in bytes of PEM.
const MAX_RETIRED: usize = 256 * 1024;

/// The keys of the Secret. The first three are what other tools expect of a TLS
/// Secret; the rest is ours.
mod key {
    pub(super) const CERTIFICATE: &str = "tls.crt";
    pub(super) const KEY: &str = "tls.key";
    pub(super) const BUNDLE: &str = "ca.crt";
    pub(super) const ACTIVE: &str = "active-ca.crt";
    pub(super) const ACTIVE_KEY: &str = "active-ca.key";
    pub(super) const NEXT: &str = "next-ca.crt";
    pub(super) const NEXT_KEY: &str = "next-ca.key";
    pub(super) const RETIRED: &str = "retired-ca.crt";
}

/// The CAs and the certificate.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    active: Arc<ServingAuthority>,
    next: Option<Arc<ServingAuthority>>,
    retired: Vec<Certificate>,
    certificate: ServingCertificate,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Make a new CA and publish it; it signs nothing yet.
    PrepareAuthority,
    /// The next CA takes over, and issues a certificate.
    ActivateAuthority,
    /// The active CA issues a certificate.
    RenewCertificate,
    /// Take expired CAs out of the bundle.
    DropRetired,
    /// Nothing that is there can be used any more: begin anew.
    StartOver,
    /// Nothing before this time.
    Wait(SystemTime),
}

/// Everything that a plan depends on beside the slots.
pub(crate) struct Circumstances<'a> {
    pub(crate) now: SystemTime,
    pub(crate) lifetimes: Lifetimes,
    /// What clients verify us by.
    pub(crate) names: &'a [ServerName],
    /// How long the API server has known the next CA; nothing where it does
    /// not know it.
    pub(crate) next_known_for: Option<Duration>,
    /// Spreads the replicas' renewals.
    pub(crate) spread: &'a Spread,
}

impl Slots {
    /// A new CA and a certificate of it.
    pub(crate) fn new(circumstances: &Circumstances<'_>) -> Result<Self, CredentialError> {
        let active = new_authority(circumstances)?;
        Ok(Self {
            certificate: issue(&active, circumstances)?,
            active,
            next: None,
            retired: Vec::new(),
        })
    }

    pub(crate) fn plan(&self, circumstances: &Circumstances<'_>) -> Step {
        let Circumstances {
            now,
            lifetimes,
            spread,
            ..
        } = *circumstances;
        let active = self.active.certificate();
        let is_usable =
            |authority: &Arc<ServingAuthority>| now < authority.certificate().not_after();
        if let Some(next) = &self.next {
            let is_known = circumstances
                .next_known_for
                .is_some_and(|known| known >= lifetimes.grace);
            if is_usable(next) && (is_known || !is_usable(&self.active)) {
                return Step::ActivateAuthority;
            }
        }
        if !is_usable(&self.active) {
            return Step::StartOver;
        }
        let authority_due = due(active, spread);
        let next_is_usable = self.next.as_ref().is_some_and(is_usable);
        if now >= authority_due && !next_is_usable {
            return Step::PrepareAuthority;
        }
        // One that ends with its CA would gain nothing; the next CA's comes.
        let certificate_due = (self.certificate.not_after() < active.not_after())
            .then(|| due(self.certificate.leaf(), spread));
        let fits = verify(&self.certificate, active, circumstances.names, now);
        if certificate_due.is_some_and(|at| now >= at) || fits.is_err() {
            return Step::RenewCertificate;
        }
        let expires = self.retired.iter().map(Certificate::not_after).min();
        if expires.is_some_and(|at| now > at) {
            return Step::DropRetired;
        }
        let activation = match (&self.next, circumstances.next_known_for) {
            // Known, and not for long enough yet.
            (Some(_), Some(known)) => now + lifetimes.grace.saturating_sub(known),
            // Unknown: whoever hears of it looks at the plan again.
            (Some(_), None) => active.not_after(),
            (None, _) => authority_due,
        };
        let retired = expires.map(|at| at + Duration::from_secs(1));
        let others = [certificate_due, retired].into_iter().flatten();
        Step::Wait(others.fold(activation, SystemTime::min))
    }

    /// Takes a step; waiting changes nothing.
    pub(crate) fn take(
        &self,
        step: Step,
        circumstances: &Circumstances<'_>,
    ) -> Result<Self, CredentialError> {
        let mut slots = self.clone();
        match step {
            Step::Wait(_) => {}
            Step::StartOver => return Self::new(circumstances),
            Step::PrepareAuthority => slots.next = Some(new_authority(circumstances)?),
            Step::ActivateAuthority => {
                if let Some(next) = slots.next.take() {
                    let before = std::mem::replace(&mut slots.active, next);
                    slots.retired.push(before.certificate().clone());
                    slots.certificate = issue(&slots.active, circumstances)?;
                }
            }
            Step::RenewCertificate => slots.certificate = issue(&slots.active, circumstances)?,
            Step::DropRetired => slots
                .retired
                .retain(|retired| circumstances.now <= retired.not_after()),
        }
        Ok(slots)
    }

    pub(crate) fn credential(&self) -> Credential {
        let authorities = [Some(&self.active), self.next.as_ref()]
            .into_iter()
            .flatten();
        Credential {
            certificate: self.certificate.clone(),
            authority: self.active.certificate().clone(),
            bundle: authorities
                .map(|authority| authority.certificate())
                .chain(&self.retired)
                .cloned()
                .collect(),
        }
    }

    /// The CA that waits for the API server to know it.
    pub(crate) fn next_authority(&self) -> Option<&Certificate> {
        self.next.as_ref().map(|next| next.certificate())
    }

    /// The data of a Secret.
    pub(crate) fn to_data(&self) -> Result<BTreeMap<String, Vec<u8>>, CredentialError> {
        let bundle: String = self
            .credential()
            .bundle
            .iter()
            .map(Certificate::to_pem)
            .collect();
        let mut data = BTreeMap::new();
        let mut put = |name: &str, text: &str| {
            data.insert(name.to_owned(), text.as_bytes().to_vec());
        };
        put(key::CERTIFICATE, &self.certificate.chain_pem());
        put(key::KEY, &key_pem(self.certificate.key())?);
        put(key::BUNDLE, &bundle);
        put(key::ACTIVE, &self.active.certificate().to_pem());
        put(key::ACTIVE_KEY, &key_pem(self.active.key())?);
        if let Some(next) = &self.next {
            put(key::NEXT, &next.certificate().to_pem());
            put(key::NEXT_KEY, &key_pem(next.key())?);
        }
        if !self.retired.is_empty() {
            let retired: String = self.retired.iter().map(Certificate::to_pem).collect();
            put(key::RETIRED, &retired);
        }
        Ok(data)
    }

    /// Reads the data of a Secret.
    pub(crate) fn from_data<'a>(
        data: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Result<Self, CredentialError> {
        let text = |name: &'static str| {
            data(name)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .ok_or(CredentialError::Slot(name))
        };
        let next = match (text(key::NEXT), text(key::NEXT_KEY)) {
            (Ok(certificate), Ok(key)) => {
                Some(ServingAuthority::from_pem(certificate, key)?.into())
            }
            _ => None,
        };
        let retired = match text(key::RETIRED) {
            Ok(retired) => Certificate::all_from_pem(retired, MAX_RETIRED)?,
            Err(_) => Vec::new(),
        };
        Ok(Self {
            active: ServingAuthority::from_pem(text(key::ACTIVE)?, text(key::ACTIVE_KEY)?)?.into(),
            next,
            retired,
            certificate: ServingCertificate::from_pem(text(key::CERTIFICATE)?, text(key::KEY)?)?,
        })
    }
}

fn key_pem(
    key: &bulkhead_pki::key::PrivateKey,
) -> Result<impl std::ops::Deref<Target = String>, CredentialError> {
    Ok(key
        .to_pem()
        .map_err(bulkhead_pki::serving::ServingError::from)?)
}

fn new_authority(
    circumstances: &Circumstances<'_>,
) -> Result<Arc<ServingAuthority>, CredentialError> {
    let lifetime = circumstances.lifetimes.authority;
    Ok(ServingAuthority::new(AUTHORITY_NAME, lifetime, circumstances.now)?.into())
}

fn issue(
    authority: &ServingAuthority,
    circumstances: &Circumstances<'_>,
) -> Result<ServingCertificate, CredentialError> {
    let lifetime = circumstances.lifetimes.certificate;
    Ok(authority.issue(circumstances.names, lifetime, circumstances.now)?)
}

/// Chooses, for each certificate, where between half and two thirds of its
/// lifetime this replica renews it: the same place whenever it is asked, and
/// another one than other replicas', so that one of them renews and the others
/// read what it wrote.
#[derive(Debug, Default)]
pub(crate) struct Spread(RandomState);

impl Spread {
    /// From 0 to 1.
    fn place(&self, certificate: &Certificate) -> f64 {
        let hash = self.0.hash_one(certificate.serial());
        f64::from(u32::try_from(hash >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }
}

/// When a certificate is due for renewal. The time before its issuing, by which
/// its validity is dated back, is none of its lifetime.
fn due(certificate: &Certificate, spread: &Spread) -> SystemTime {
    let end = certificate.not_after();
    let issued = (certificate.not_before() + BACKDATE).min(end);
    let lifetime = end.duration_since(issued).unwrap_or(Duration::ZERO);
    issued + lifetime.mul_f64(0.5 + spread.place(certificate) / 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIFETIMES: Lifetimes = Lifetimes {
        certificate: HOUR.saturating_mul(24),
        authority: HOUR.saturating_mul(240),
        grace: Duration::from_secs(60),
    };

    fn start() -> SystemTime {
        UNIX_EPOCH + HOUR * 500_000
    }

    /// A replica's view of the world, which a test moves along.
    struct World {
        now: SystemTime,
        names: Vec<ServerName>,
        next_known_for: Option<Duration>,
        spread: Spread,
    }

    impl World {
        fn new() -> Self {
            Self {
                now: start(),
                names: vec![ServerName::parse("webhook.test.svc").unwrap()],
                next_known_for: None,
                spread: Spread::default(),
            }
        }

        fn circumstances(&self) -> Circumstances<'_> {
            Circumstances {
                now: self.now,
                lifetimes: LIFETIMES,
                names: &self.names,
                next_known_for: self.next_known_for,
                spread: &self.spread,
            }
        }

        fn slots(&self) -> Slots {
            Slots::new(&self.circumstances()).unwrap()
        }

        fn plan(&self, slots: &Slots) -> Step {
            slots.plan(&self.circumstances())
        }

        fn take(&self, slots: &Slots, step: Step) -> Slots {
            slots.take(step, &self.circumstances()).unwrap()
        }
    }

    #[test]
    fn a_certificate_is_renewed_between_half_and_two_thirds_of_its_lifetime() {
        let mut places = Vec::new();
        for _ in 0..20 {
            let world = World::new();
            let slots = world.slots();
            let Step::Wait(until) = world.plan(&slots) else {
                panic!("a new certificate is not due");
            };
            places.push(until.duration_since(start()).unwrap());
        }
        let (earliest, latest) = (places.iter().min().unwrap(), places.iter().max().unwrap());
        assert!(*earliest >= HOUR * 12 && *latest <= HOUR * 16, "{places:?}");
        assert!(
            *latest - *earliest > HOUR / 4,
            "replicas come at different times"
        );
    }

    #[test]
    fn renewal_keeps_the_ca_so_that_nothing_need_be_registered() {
        let mut world = World::new();
        let slots = world.slots();
        world.now += HOUR * 16;
        assert_eq!(world.plan(&slots), Step::RenewCertificate);
        let renewed = world.take(&slots, Step::RenewCertificate);
        assert_eq!(slots.credential().bundle, renewed.credential().bundle);
        assert!(renewed.certificate.not_after() > slots.certificate.not_after());
    }

    #[test]
    fn another_ca_signs_only_after_the_api_server_has_known_it_for_a_while() {
        let mut world = World::new();
        let slots = world.slots();
        world.now += HOUR * 161;
        assert_eq!(world.plan(&slots), Step::PrepareAuthority);
        let prepared = world.take(&slots, Step::PrepareAuthority);
        assert_eq!(prepared.credential().bundle.len(), 2);
        assert_eq!(
            prepared.credential().authority,
            slots.credential().authority
        );

        // The certificate is due as well, and the old CA renews it meanwhile.
        assert_eq!(world.plan(&prepared), Step::RenewCertificate);
        let renewed = world.take(&prepared, Step::RenewCertificate);
        assert!(
            matches!(world.plan(&renewed), Step::Wait(_)),
            "nobody has heard of it"
        );
        world.next_known_for = Some(LIFETIMES.grace / 2);
        assert_eq!(
            world.plan(&renewed),
            Step::Wait(world.now + LIFETIMES.grace / 2)
        );
        world.next_known_for = Some(LIFETIMES.grace);
        assert_eq!(world.plan(&renewed), Step::ActivateAuthority);

        let active = world.take(&renewed, Step::ActivateAuthority).credential();
        assert_ne!(active.authority, slots.credential().authority);
        assert!(
            active.bundle.contains(&slots.credential().authority),
            "others serve it still"
        );
    }

    #[test]
    fn at_every_step_the_bundle_of_before_covers_what_is_served_after() {
        let mut world = World::new();
        let mut slots = world.slots();
        let mut published: Option<SystemTime> = None;
        let mut activations = 0;
        for _ in 0..600 {
            let bundle = slots.credential().bundle;
            world.next_known_for = published.map(|at| world.now.duration_since(at).unwrap());
            let step = world.plan(&slots);
            match step {
                Step::Wait(until) => {
                    assert!(until > world.now, "a wait ends later than it begins");
                    world.now = until;
                }
                Step::StartOver => panic!("a replica that runs never starts over"),
                step => {
                    slots = world.take(&slots, step);
                    activations += usize::from(step == Step::ActivateAuthority);
                }
            }
            let served = slots.credential();
            assert!(bundle.contains(&served.authority), "after {step:?}");
            verify(
                &served.certificate,
                &served.authority,
                &world.names,
                world.now,
            )
            .unwrap();
            published = match (slots.next_authority(), published) {
                (Some(_), None) => Some(world.now),
                (Some(_), known) => known,
                (None, _) => None,
            };
        }
        assert!(
            activations >= 3,
            "the CA was renewed {activations} times only"
        );
        assert!(slots.retired.len() <= 2, "expired CAs leave the bundle");
    }

    #[test]
    fn a_ca_that_nobody_can_register_is_used_until_its_end_and_not_renewed_in_a_rush() {
        let mut world = World::new();
        let mut slots = world.slots();
        let mut steps = 0;
        while world.now < start() + HOUR * 239 {
            match world.plan(&slots) {
                Step::Wait(until) => world.now = until,
                step => slots = world.take(&slots, step),
            }
            steps += 1;
            assert!(steps < 100, "renewals follow each other ever faster");
        }
        assert!(slots.next_authority().is_some());
    }

    #[test]
    fn an_expired_ca_gives_way_at_once_to_the_next_or_to_a_new_one() {
        let mut world = World::new();
        let slots = world.slots();
        let prepared = world.take(&slots, Step::PrepareAuthority);
        world.now += HOUR * 241;
        assert_eq!(world.plan(&slots), Step::StartOver);
        assert_eq!(
            world.plan(&prepared),
            Step::StartOver,
            "both were made at one time"
        );
        world.now = start() + HOUR * 200;
        let later = world.take(&slots, Step::PrepareAuthority);
        world.now = start() + HOUR * 241;
        assert_eq!(world.plan(&later), Step::ActivateAuthority);
    }

    #[test]
    fn a_service_by_another_name_gets_a_new_certificate() {
        let mut world = World::new();
        let slots = world.slots();
        world.names = vec![ServerName::parse("renamed.test.svc").unwrap()];
        assert_eq!(world.plan(&slots), Step::RenewCertificate);
        let renewed = world.take(&slots, Step::RenewCertificate);
        assert!(matches!(world.plan(&renewed), Step::Wait(_)));
    }

    #[test]
    fn slots_come_back_from_a_secret_as_they_went_in() {
        let mut world = World::new();
        let slots = world.take(&world.slots(), Step::PrepareAuthority);
        world.next_known_for = Some(LIFETIMES.grace);
        let slots = world.take(&slots, Step::ActivateAuthority);
        let slots = world.take(&slots, Step::PrepareAuthority);
        let data = slots.to_data().unwrap();
        let read = Slots::from_data(|name| data.get(name).map(Vec::as_slice)).unwrap();
        assert_eq!(read.credential().bundle, slots.credential().bundle);
        assert_eq!(read.next_authority(), slots.next_authority());
        assert_eq!(read.to_data().unwrap(), data);
    }

    #[test]
    fn a_damaged_secret_is_an_error_and_not_a_panic() {
        let world = World::new();
        let data = world.slots().to_data().unwrap();
        for damaged in ["tls.crt", "tls.key", "active-ca.crt", "active-ca.key"] {
            for value in [None, Some(&b"\xff\xfe"[..]), Some(b"nonsense"), Some(b"")] {
                let read = Slots::from_data(|name| match name == damaged {
                    true => value,
                    false => data.get(name).map(Vec::as_slice),
                });
                assert!(read.is_err(), "{damaged} {value:?}");
            }
        }
    }
}
