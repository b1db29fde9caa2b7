//! The status of a CertificateRequest: of cert-manager, of an issuer's controller, or
//! of whoever else may write it.

#![no_main]

mod upstream;

use bulkhead_ca::upstream::cert_manager::request::State;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use self::upstream::{SECRET, can_be_shown, judge};

fuzz_target!(|status: &[u8]| {
    let Ok(status) = serde_json::from_slice::<Value>(status) else {
        return;
    };
    // The request itself is no secret; that nothing of it is repeated is tried with one.
    let request = json!({"spec": {"request": SECRET}, "status": status});
    let conditions = request["status"]["conditions"].as_array();
    let conditions = conditions.map_or(&[][..], Vec::as_slice);
    let has = |kind: &str, key: &str, value: &str| {
        let mut of_kind = conditions.iter().filter(|found| found["type"] == kind);
        of_kind.any(|found| found[key] == value)
    };
    let was_refused = has("Denied", "status", "True") || has("InvalidRequest", "status", "True");
    let has_failed = has("Ready", "reason", "Failed") || has("Ready", "reason", "Denied");
    match State::of(&request) {
        State::Issued(issued) => {
            assert!(has("Ready", "status", "True") && !was_refused);
            judge(|roots| issued.read(roots));
        }
        State::Refused(why) => {
            assert!(was_refused || has_failed);
            can_be_shown(&why);
        }
        State::Pending(what) => {
            assert!(!was_refused);
            can_be_shown(&what);
        }
        State::Unreadable(what) => can_be_shown(&what),
    }
});
