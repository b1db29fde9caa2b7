//! Keys, certificates and what they prove: bytes in, bytes out. Nothing here
//! reads a file, a clock or a socket; the time is an argument.
//!
//! ```text
//!  workload:  key ──▶ csr ───────────────┐            ┌──▶ identity ──▶ rustls configs
//!                                        ▼            │    (key + chain + bundle, checked
//!  CA:        authority ──────▶ issue ──▶ svid chain ─┤     together by the peer's verifier)
//!             (signs)           (profile checked)     └──▶ verifier ──▶ PeerId
//! ```
//!
//! In reading order:
//! - [`pem`]: the text form, read with bounds.
//! - [`key`]: private and public keys, and which kinds are accepted.
//! - [`certificate`]: a parsed certificate, and what the rules look at.
//! - [`svid`]: the X.509-SVID profile as one list of rules; chains.
//! - [`csr`]: certificate requests, made and vetted.
//! - [`authority`]: signing certificates, and what they issue.
//! - [`elsewhere`]: leaves that another CA signed for us, judged.
//! - [`bundle`]: trust roots, and the SPIFFE document that carries them.
//! - [`verifier`]: who a TLS peer is; the only rustls verifier in Bulkhead.
//! - [`identity`]: one workload's key, chain and bundle, and its TLS configs.
//! - [`renewal`]: when a certificate is due.
//! - [`jwt`]: JWT-SVIDs, signed and validated; [`jws`]: signatures of tokens;
//!   [`jwk`]: their keys.
//! - [`serving`]: certificates with DNS names, for Bulkhead's own servers.
//!
//! - [`probe`]: TLS towards an application that is only being probed.
//!
//! Standards: X509-SVID, JWT-SVID and SPIFFE-ID
//! (<https://github.com/spiffe/spiffe/tree/main/standards>), RFC 5280, RFC 2986,
//! RFC 7515, RFC 7517, RFC 7519.

pub mod authority;
pub mod bundle;
pub mod certificate;
pub mod csr;
pub mod elsewhere;
pub mod identity;
pub mod jwk;
pub mod jws;
pub mod jwt;
pub mod key;
mod leaf;
pub mod pem;
pub mod probe;
pub mod renewal;
pub mod serving;
mod signer;
pub mod svid;
mod tls;
pub mod verifier;
