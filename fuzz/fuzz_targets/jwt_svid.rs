//! A token that somebody shows, and a trust bundle: a line of JSON, then the
//! token.

#![no_main]

use std::time::UNIX_EPOCH;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::jwt::JwtAuthorities;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let domain = TrustDomain::new("cluster.local").expect("a literal");
    let (bundle, token) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(authorities) = JwtAuthorities::from_json(domain.clone(), bundle) else {
        return;
    };
    // What was taken from a bundle is a bundle again.
    let again = JwtAuthorities::from_json(domain.clone(), &authorities.to_json());
    assert_eq!(again.expect("what was written is read"), authorities);
    // Nothing is valid but what says so itself.
    if let Ok(svid) = authorities.validate(token, "reports", UNIX_EPOCH) {
        assert!(svid.id().is_member_of(&domain));
        assert!(
            svid.audiences()
                .iter()
                .any(|audience| audience == "reports")
        );
        assert!(svid.expires_at() > UNIX_EPOCH);
        assert!(
            authorities
                .validate(token, "elsewhere", svid.expires_at())
                .is_err()
        );
    }
});
