//! What a caller says of itself beside its request. Nobody can check it: it
//! orders work and informs people, and permits nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_pki::bundle::BundleId;
use bulkhead_proto::ca::metadata;
use tonic::metadata::MetadataMap;

use crate::queue::Urgency;

/// A certificate that is good for less is about to expire. Workloads renew at
/// four fifths of a lifetime at the latest, which of a day leaves nearly five
/// hours: whoever comes later than this has been in trouble for a while.
const SOON: Duration = Duration::from_secs(3600);

/// The length of a trust bundle's id, in characters.
const BUNDLE_ID_LENGTH: usize = 32;

/// A caller's claims.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claims {
    /// The id of the trust bundle that it holds.
    pub trust_bundle: Option<String>,
    /// When its present certificate expires.
    pub certificate_expires: Option<SystemTime>,
}

impl Claims {
    /// Reads what is well-formed; the rest is not said.
    pub fn read(metadata: &MetadataMap) -> Self {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let is_id = |text: &&str| {
            let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            text.len() == BUNDLE_ID_LENGTH && text.bytes().all(digit)
        };
        Self {
            trust_bundle: text(metadata::TRUST_BUNDLE)
                .filter(is_id)
                .map(str::to_owned),
            certificate_expires: text(metadata::CERTIFICATE_EXPIRES)
                .and_then(|text| text.parse().ok())
                .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
        }
    }

    /// The bundle that it holds, by name.
    pub fn bundle(&self) -> Option<BundleId> {
        self.trust_bundle.as_deref()?.parse().ok()
    }

    /// How much of a hurry the caller is in.
    pub fn urgency(&self, now: SystemTime) -> Urgency {
        let remaining = |expires: SystemTime| expires.duration_since(now).unwrap_or_default();
        match self.certificate_expires.map(remaining) {
            None => Urgency::NoCertificate,
            // One that has expired is none.
            Some(Duration::ZERO) => Urgency::NoCertificate,
            Some(remaining) if remaining < SOON => Urgency::ExpiresSoon,
            Some(_) => Urgency::Renewal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Claims {
        let mut map = MetadataMap::new();
        for (name, value) in pairs {
            map.insert(*name, value.parse().unwrap());
        }
        Claims::read(&map)
    }

    #[test]
    fn a_caller_says_how_long_its_certificate_is_good_for() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let urgency = |expires| read(&[(metadata::CERTIFICATE_EXPIRES, expires)]).urgency(now);
        assert_eq!(read(&[]).urgency(now), Urgency::NoCertificate);
        assert_eq!(urgency("999999"), Urgency::NoCertificate);
        assert_eq!(urgency("1000001"), Urgency::ExpiresSoon);
        assert_eq!(urgency("1080000"), Urgency::Renewal);
    }

    #[test]
    fn what_is_not_well_formed_is_not_said() {
        for text in [
            "",
            "-1",
            "soon",
            "99999999999999999999",
            "18446744073709551615",
        ] {
            let claims = read(&[(metadata::CERTIFICATE_EXPIRES, text)]);
            assert_eq!(claims.certificate_expires, None, "{text:?}");
        }
        let id = "0123456789abcdef0123456789abcdef";
        let claims = read(&[(metadata::TRUST_BUNDLE, id)]);
        assert_eq!(claims.trust_bundle.as_deref(), Some(id));
        for text in ["", "0123", &id.to_uppercase(), &id.repeat(2)] {
            let claims = read(&[(metadata::TRUST_BUNDLE, text)]);
            assert_eq!(claims, Claims::default(), "{text:?}");
        }
    }
}
