//! What a proxy holds, as a node's metadata.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::held::Held;
use prost_types::Struct;
use prost_types::value::Kind;

const TRUST_BUNDLE: &str = "trust-bundle";
const SIGNING_ROOT: &str = "signing-root";
const CERTIFICATE_EXPIRES: &str = "certificate-expires";

/// The most digits that a fingerprint or an id has: those of SHA-256.
const MAX_DIGITS: usize = 64;
/// The last second that is read: a number on the wire counts exactly so far.
const MAX_SECONDS: f64 = 9_007_199_254_740_992.0;

pub(super) fn write(held: &Held) -> Struct {
    let since = held.certificate_expires.duration_since(UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    let fields = [
        (TRUST_BUNDLE, Kind::StringValue(held.bundle.clone())),
        (SIGNING_ROOT, Kind::StringValue(held.signing_root.clone())),
        (CERTIFICATE_EXPIRES, Kind::NumberValue(seconds as f64)),
    ];
    let fields = fields.map(|(name, kind)| (name.to_owned(), kind.into()));
    Struct {
        fields: fields.into(),
    }
}

/// Nothing where it does not say all of it in the form that was agreed: other
/// clients have metadata of their own, and are served all the same.
pub(super) fn read(metadata: &Struct) -> Option<Held> {
    Some(Held {
        bundle: digits(metadata, TRUST_BUNDLE)?,
        signing_root: digits(metadata, SIGNING_ROOT)?,
        certificate_expires: time(metadata, CERTIFICATE_EXPIRES)?,
    })
}

fn digits(metadata: &Struct, name: &str) -> Option<String> {
    let Some(Kind::StringValue(text)) = &metadata.fields.get(name)?.kind else {
        return None;
    };
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_sound = (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(is_digit);
    is_sound.then(|| text.clone())
}

fn time(metadata: &Struct, name: &str) -> Option<SystemTime> {
    let Some(Kind::NumberValue(seconds)) = metadata.fields.get(name)?.kind else {
        return None;
    };
    if !(0.0..=MAX_SECONDS).contains(&seconds) {
        return None;
    }
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds.floor()).ok()?)
}
