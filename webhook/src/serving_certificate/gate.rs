//! Whether a certificate may be served yet.

use std::time::{Duration, SystemTime};

use bulkhead_pki::certificate::Certificate;
use tokio::time::Instant;

use super::Credential;

/// Whether a certificate of `authority` may take the place of what is served.
///
/// It may at once where nothing is served, where what is served has expired,
/// and where both are of one CA; and else when the API server has known the CA
/// for `grace`.
pub(super) fn is_open(
    serving: Option<&Credential>,
    authority: &Certificate,
    known_since: Option<Instant>,
    grace: Duration,
    wall: SystemTime,
    now: Instant,
) -> bool {
    let Some(serving) = serving else { return true };
    serving.authority == *authority
        || wall > serving.certificate.not_after()
        || known_since.is_some_and(|since| now.duration_since(since) >= grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_pki::serving::{ServerName, ServingAuthority};
    use std::time::UNIX_EPOCH;

    const GRACE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    fn wall() -> SystemTime {
        UNIX_EPOCH + 500_000 * HOUR
    }

    fn credential() -> Credential {
        let authority = ServingAuthority::new("test", 24 * HOUR, wall()).unwrap();
        let names = [ServerName::parse("webhook.test.svc").unwrap()];
        Credential {
            certificate: authority.issue(&names, HOUR, wall()).unwrap(),
            authority: authority.certificate().clone(),
            bundle: vec![authority.certificate().clone()],
        }
    }

    #[test]
    fn another_ca_is_served_only_after_the_api_server_has_known_it_for_a_while() {
        let (serving, wanted) = (credential(), credential());
        let start = Instant::now();
        let open =
            |known, now| is_open(Some(&serving), &wanted.authority, known, GRACE, wall(), now);
        assert!(
            !open(None, start + 100 * GRACE),
            "the API server never heard of it"
        );
        assert!(!open(Some(start), start + GRACE / 2));
        assert!(open(Some(start), start + GRACE));
    }

    #[test]
    fn nothing_waits_where_waiting_would_serve_nothing_better() {
        let (serving, wanted) = (credential(), credential());
        let now = Instant::now();
        assert!(is_open(None, &wanted.authority, None, GRACE, wall(), now));
        assert!(is_open(
            Some(&serving),
            &serving.authority,
            None,
            GRACE,
            wall(),
            now
        ));
        let expired = wall() + 2 * HOUR;
        assert!(is_open(
            Some(&serving),
            &wanted.authority,
            None,
            GRACE,
            expired,
            now
        ));
    }
}
