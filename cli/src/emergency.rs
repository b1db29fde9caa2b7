//! The kill switch as people turn it: what `off`, `bypass`, `eject` and `on`
//! are made of. Everything goes over the API server, and nothing of Bulkhead
//! has to be alive.
//!
//! ```text
//!  scope + terms ──▶ switch (the object, and the Job that is its time limit)
//!                      │ level 1                 │ level 2               │ level 3
//!                   registration, proof       sidecars, order         rollout
//! ```
//!
//! - `scope`: which pods a command is about.
//! - `terms`: why and for how long.
//! - `switch`: makes, finds and removes the objects.
//! - `registration`: level 1 before Kubernetes 1.36.
//! - `proof`: whether pods really are created without a sidecar.
//! - [`banner`]: what every other command says while a switch is on.

pub mod banner;
mod proof;
mod registration;
mod scope;
mod switch;
mod terms;

pub(crate) use proof::{Proof, prove};
pub(crate) use registration::{is_obeyed_by_the_api_server, leave_out};
pub(crate) use scope::{Scope, ScopeArgs};
pub(crate) use switch::{Limit, Switch, Turned, find, manifest, remove, turn};
pub(crate) use terms::{Request, TermsArgs, end};
