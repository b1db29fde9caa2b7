//! A workload that shows its present certificate and no token, and asks for
//! another of the same name.
//!
//! Nobody but the certificate vouches for it: its pod may be gone, and its key
//! stolen. So what it gets is valid for half as long as what it shows, from the
//! first to the last second. Halves of halves add up to one whole: after the last
//! certificate that a token was needed for, nothing lives on for longer than that
//! one was valid, however often it is renewed. That is written in what the CA
//! signed, and neither can be forged nor needs to be remembered.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_pki::authority::BACKDATE;
use bulkhead_pki::verifier::ShownChain;
use bulkhead_runtime::clock::Clock;

use super::{AuthenticationError, Caller};
use crate::issuer::Issuer;

/// The shortest certificate that is issued for another. A workload has to come
/// back within half of it.
const SHORTEST: Duration = Duration::from_secs(60);

/// Certificates are dated to the second.
const ROUNDING: Duration = Duration::from_secs(1);

/// Takes the trust domain's own certificates for proof.
#[derive(Clone)]
pub struct CertificateRenewal {
    issuer: Arc<dyn Issuer>,
    clock: Clock,
}

/// What a certificate that stands for a token allows, and no more.
#[derive(Clone, Debug)]
pub struct Succession {
    /// The serial number of the certificate that was shown.
    pub serial: String,
    /// How long the next one is valid from now, at most.
    pub lifetime: Duration,
    /// How long it is valid from its beginning to its end, at most.
    pub validity: Duration,
}

impl Succession {
    /// After a certificate that is valid for so long from its beginning to its end.
    fn after(serial: String, validity: Duration) -> Option<Self> {
        let validity = validity / 2;
        let lifetime = validity.checked_sub(BACKDATE + ROUNDING)?;
        (lifetime >= SHORTEST).then_some(Self {
            serial,
            lifetime,
            validity,
        })
    }
}

impl CertificateRenewal {
    pub fn new(issuer: Arc<dyn Issuer>, clock: Clock) -> Self {
        Self { issuer, clock }
    }

    /// Whoever showed this, if peers would believe it now.
    pub fn caller(&self, shown: &ShownChain) -> Result<Caller, AuthenticationError> {
        let shown = shown.verify(&self.issuer.trust_bundle(), self.clock.now())?;
        let succession = Succession::after(shown.serial, shown.validity);
        let succession = succession.ok_or(AuthenticationError::RenewedTooOften)?;
        Ok(Caller::by_certificate(shown.peer.id().clone(), succession))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn all_renewals_together_last_no_longer_than_what_they_began_with() {
        let (mut validity, mut together, mut renewals) = (DAY + BACKDATE, Duration::ZERO, 0);
        while let Some(next) = Succession::after(String::new(), validity) {
            // Whoever issues may round, and no more.
            assert!(next.lifetime + BACKDATE < next.validity);
            validity = next.validity;
            together += next.lifetime;
            renewals += 1;
        }
        assert!(together < DAY + BACKDATE, "{together:?}");
        assert_eq!(
            renewals, 8,
            "a day is enough to notice that tokens are missing"
        );
    }

    #[test]
    fn what_is_too_short_to_be_halved_ends() {
        for seconds in [0, 1, 60, 240, 361] {
            let succession = Succession::after(String::new(), Duration::from_secs(seconds));
            assert!(succession.is_none(), "{seconds}");
        }
        assert!(Succession::after(String::new(), Duration::from_secs(362)).is_some());
    }
}
