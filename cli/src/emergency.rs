//! The kill switch as people turn it: what `off`, `bypass`, `eject` and `on`
//! are made of. Everything goes over the API server, and nothing of Bulkhead
//! has to be alive.
//!
//! ```text
//!  scope + terms ──▶ switch (the object, and the Job that is its time limit)
//!                      │ level 1                 │ level 2               │ level 3
//!                   registration, proof       stages                  workloads
//!                                             order · sidecars        rollout
//! ```
//!
//! - `scope`: which pods a command is about.
//! - `terms`: why and for how long.
//! - `switch`: makes, finds and removes the objects.
//! - `answer`: what is said of them.
//! - `registration`: level 1 before Kubernetes 1.36.
//! - `proof`: whether pods really are created without a sidecar.
//! - `stages`: servers before clients, and back.
//! - `order`: what kubelets mount.
//! - `sidecars`: the pods, and their sidecars' admin ports.
//! - `workloads`, `rollout`: whose pods they are, and restarts at a pace.
//! - [`banner`]: what every other command says while a switch is on.

pub mod banner;

mod answer;
mod order;
mod proof;
mod registration;
mod rollout;
mod scope;
mod sidecars;
mod stages;
mod switch;
mod terms;
mod workloads;

pub(crate) use answer::write_turned;
pub(crate) use order::has_orders;
pub(crate) use proof::{Proof, prove};
pub(crate) use registration::{is_obeyed_by_the_api_server, leave_out};
pub(crate) use rollout::{Outcome, Pace, restart_all};
pub(crate) use scope::{Scope, ScopeArgs};
pub(crate) use sidecars::{Presence, mesh_pods};
pub(crate) use stages::{stand_aside, step_back};
pub(crate) use switch::{Switch, Turned, find, is_forbidden, manifest, remove, turn};
pub(crate) use terms::{Request, TermsArgs};
pub(crate) use workloads::sort;

/// The annotation that a pod carries which a switch kept from its sidecar.
const STOPPED_ANNOTATION: &str = "bulkhead.io/injection-stopped";
