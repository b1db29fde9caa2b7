//! How roots, intermediates and token keys follow each other.
//!
//! - [`holders`]: which workloads hold the trust bundle, as far as they say.
//! - [`orders`]: which root people want.

pub mod holders;
pub mod orders;
