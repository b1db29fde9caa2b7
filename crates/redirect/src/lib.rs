//! Has the kernel hand a pod's connections to the proxy: nf_tables rules, set
//! over netlink in one transaction, read back, and tried with a connection.
//!
//! ```text
//!  RedirectConfig ─ Table::of ─▶ Table ─ compile ─▶ Ruleset ─ encode ─▶ kernel
//!   (what is asked)               │ rules as people    ▲ what the kernel      │
//!                                 ▼ write them         └────── decode ◀───────┘
//!                          `bulkhead-init print`            is it what was asked?
//! ```
//!
//! In reading order:
//! - [`table`]: the rules, in nft's language.
//! - [`plan`]: which rules a configuration means. The decisions themselves are
//!   [`bulkhead_core::redirect::RedirectConfig`]'s functions; the kernel must
//!   come to the same answers.
//! - [`ruleset`]: the same rules as the small programs that the kernel runs.
//! - [`netlink`]: reading and replacing them.
//! - [`capability`]: NET_ADMIN, or why it is not there.
//! - [`check`]: a connection that must be redirected, and one that must not.
//! - [`app`]: what `bulkhead-init` does with all this.

pub mod app;
pub mod capability;
pub mod check;
pub mod config;
pub mod netlink;
pub mod plan;
pub mod ruleset;
pub mod table;
