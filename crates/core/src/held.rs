//! What a proxy holds of the mesh's trust, as it tells control. Whoever rotates a
//! root waits for it: nothing is signed by a root that a proxy does not hold yet.

use std::time::SystemTime;

/// What one proxy holds. It is the proxy's own word: good for a status that
/// people watch and for the pace of a rotation, never for a permission.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct Held {
    /// The id of its trust bundle, in lower-case hexadecimal digits.
    pub bundle: String,
    /// The SHA-256 fingerprint, in lower-case hexadecimal digits, of the root
    /// that its own certificate chains to.
    pub signing_root: String,
    /// When its own certificate expires, to the second.
    pub certificate_expires: SystemTime,
}
