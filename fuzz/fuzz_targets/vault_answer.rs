//! What a Vault says, or whoever listens where one should be.

#![no_main]

mod upstream;

use std::sync::LazyLock;
use std::time::Duration;

use bulkhead_ca::upstream::vault::{Url, answer};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

use self::upstream::{SECRET, can_be_shown, judge, told};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is asked there: for a signature, and for a token.
const PATHS: [&str; 2] = ["mesh/sign/workloads", "auth/kubernetes/login"];

/// Those that mean something, and some that do not.
const STATUSES: [u16; 9] = [301, 400, 403, 404, 418, 429, 472, 500, 503];

static URL: LazyLock<Url> = LazyLock::new(|| "https://vault.test".parse().expect("an address"));

fuzz_target!(|json: &[u8]| {
    if json
        .windows(SECRET.len())
        .any(|part| part == SECRET.as_bytes())
    {
        return;
    }
    read(json);
    if let Some(json) = with_secrets(json) {
        read(&json);
    }
});

/// Reads it as each of the answers that the CA waits for.
fn read(json: &[u8]) {
    judge(|roots| answer::signed(json, roots));
    if let Some(granted) = told(answer::granted(json)) {
        assert!(!granted.token.is_empty());
        assert!(!granted.lifetime.is_zero() && granted.lifetime <= DAY);
        // A stricter reader may find fault with what nobody here looks at.
        if let Ok(said) = serde_json::from_slice::<Value>(json) {
            assert_eq!(said["auth"]["client_token"], granted.token.as_str());
        }
    }
    for path in PATHS {
        for status in STATUSES {
            let error = answer::refusal(&URL, path, status, json);
            can_be_shown(&error.to_string());
        }
    }
}

/// The same, with secrets wherever Vault puts them.
fn with_secrets(json: &[u8]) -> Option<Vec<u8>> {
    let mut answer: Value = serde_json::from_slice(json).ok()?;
    let answer = answer.as_object_mut()?;
    for (part, name) in [
        ("auth", "client_token"),
        ("auth", "accessor"),
        ("data", "private_key"),
        ("wrap_info", "token"),
    ] {
        let part = answer
            .entry(part)
            .or_insert_with(|| Value::Object(Default::default()));
        if let Some(part) = part.as_object_mut() {
            part.insert(name.to_owned(), SECRET.into());
        }
    }
    serde_json::to_vec(answer).ok()
}
