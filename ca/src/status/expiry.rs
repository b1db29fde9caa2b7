//! Which authorities end too soon.
//!
//! A root should have 60 days left, and whatever lives for less than half a year
//! a third of its life: an intermediate that is looked after is replaced before
//! that.

use std::time::{Duration, SystemTime};

use bulkhead_crds::certificate_authority::{Authority, AuthorityKind, AuthorityState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const ROOT: Duration = Duration::from_secs(60 * 24 * 3600);

/// How urgent it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Urgency {
    /// Less is left than should be.
    Soon,
    /// Less than half of that.
    Sooner,
    /// Less than a tenth of it.
    Now,
    Expired,
}

/// How urgent it is that an authority is replaced; not at all, where it signs
/// nothing or has long enough.
pub(super) fn urgency(authority: &Authority, now: SystemTime) -> Option<Urgency> {
    let signs = authority.state == AuthorityState::Active && authority.kind != AuthorityKind::Jwt;
    let begins = time(authority.not_before.as_ref()?);
    let ends = time(authority.not_after.as_ref()?);
    let third = ends.duration_since(begins).unwrap_or_default() / 3;
    let should = match authority.kind {
        AuthorityKind::Root => third.min(ROOT),
        AuthorityKind::Intermediate | AuthorityKind::Jwt => third,
    };
    let left = ends.duration_since(now).unwrap_or_default();
    let urgency = match left {
        Duration::ZERO => Urgency::Expired,
        left if left < should / 10 => Urgency::Now,
        left if left < should / 2 => Urgency::Sooner,
        left if left < should => Urgency::Soon,
        _ => return None,
    };
    signs.then_some(urgency)
}

/// What a person should know of it.
pub(super) fn sentence(authority: &Authority, now: SystemTime) -> String {
    let Authority {
        kind, generation, ..
    } = authority;
    let has_expired = authority
        .not_after
        .as_ref()
        .is_none_or(|ends| time(ends) <= now);
    let advice = match kind {
        AuthorityKind::Root if has_expired => {
            "the CA makes another and signs with it as soon as it can; renew an upstream's there"
        }
        AuthorityKind::Root => "run `bulkhead ca rotate-root`",
        AuthorityKind::Intermediate | AuthorityKind::Jwt => {
            "the CA should have replaced it: see its log, and its upstream"
        }
    };
    // The time itself and not what is left of it, which is another each time that
    // somebody looks.
    match &authority.not_after {
        Some(ends) if time(ends) > now => {
            format!("{kind} {generation} expires at {}; {advice}", ends.0)
        }
        Some(_) | None => format!("{kind} {generation} has expired; {advice}"),
    }
}

pub(super) fn time(time: &Time) -> SystemTime {
    time.0.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const DAY: u64 = 24 * 3600;

    fn authority(kind: AuthorityKind, days: u64) -> Authority {
        let at = |days| {
            Time(
                (UNIX_EPOCH + Duration::from_secs(days * DAY))
                    .try_into()
                    .unwrap(),
            )
        };
        Authority {
            kind,
            generation: 1,
            state: AuthorityState::Active,
            fingerprint: String::new(),
            serial: None,
            not_before: Some(at(0)),
            not_after: Some(at(days)),
            key_type: None,
            issuer: None,
        }
    }

    fn on_day(day: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(day * DAY)
    }

    #[test]
    fn a_root_becomes_urgent_sixty_days_before_its_end() {
        let root = authority(AuthorityKind::Root, 3650);
        for (day, expected) in [
            (3589, None),
            (3591, Some(Urgency::Soon)),
            (3621, Some(Urgency::Sooner)),
            (3645, Some(Urgency::Now)),
            (3650, Some(Urgency::Expired)),
        ] {
            assert_eq!(urgency(&root, on_day(day)), expected, "day {day}");
        }
        assert!(sentence(&root, on_day(3640)).contains("rotate-root"));
    }

    #[test]
    fn an_intermediate_becomes_urgent_at_the_last_third_of_its_life() {
        let intermediate = authority(AuthorityKind::Intermediate, 90);
        assert_eq!(urgency(&intermediate, on_day(59)), None);
        assert_eq!(urgency(&intermediate, on_day(61)), Some(Urgency::Soon));
    }

    #[test]
    fn what_signs_nothing_may_end() {
        let published = Authority {
            state: AuthorityState::Published,
            ..authority(AuthorityKind::Root, 90)
        };
        assert_eq!(urgency(&published, on_day(89)), None);
    }
}
