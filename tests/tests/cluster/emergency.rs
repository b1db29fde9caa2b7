//! The kill switch as it is typed at three in the morning.
//!
//! - [`off`]: level 1, with every pod of ours dead.
//! - [`bypass`]: level 2, from STRICT on both sides.
//! - [`eject`]: level 3, and what everybody sees of a switch.

mod bypass;
mod eject;
mod off;

/// STRICT, so that whoever sends plaintext is refused where a switch is not on.
const STRICT: &[(&str, &str)] = &[("bulkhead.io/mtls-mode", "STRICT")];
