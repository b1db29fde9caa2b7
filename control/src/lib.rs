//! Control: tells each proxy what it needs to know, and nothing else, when it
//! asks and whenever that changes.
//!
//! ```text
//!  kube-apiserver ──watch──▶ source ─▶ object ─▶ ┌───────────────────────┐
//!  or a directory             (what is kept)     │ hub: index, switches, │
//!                                                │ answers, who watches  │
//!  proxy ──mTLS──▶ server ─▶ service ──names───▶ │                       │
//!        ◀───────────────────────────answers──── └───────────────────────┘
//! ```
//!
//! It holds no state of its own: everything is in the API server, so any number
//! of replicas run side by side, and a proxy that knows something already is
//! told by another replica only what is new.
//!
//! In reading order:
//! - [`config`]: the settings; [`app`]: the wiring.
//! - [`object`]: what is kept of Kubernetes' objects.
//! - `source`: where they come from: the API server, or files.
//! - [`index`]: what is known, and what proxies ask of it. Pure.
//! - [`hub`]: where what is known meets who wants to know.
//! - `server`, `service`: connections, and the streams on them.
//! - [`emergency`]: bypasses, in their stages.
//! - `holders`: which proxies hold the trust bundle, for whoever rotates a root.
//! - `missing`: pods without the sidecar that they should have; the replica that
//!   holds the Lease does something about it.
//! - [`audit`], [`metrics`]: what is told about it all.
//!
//! # What the ServiceAccount must be allowed
//!
//! | resource | verbs | where | why |
//! |---|---|---|---|
//! | `namespaces`, `pods`, `services` | get, list, watch | cluster | what destinations are, what pods accept, who misses a sidecar |
//! | `endpointslices.discovery.k8s.io` | get, list, watch | cluster | where connections may go |
//! | `peerauthentications.security.istio.io` | get, list, watch | cluster | what pods accept |
//! | `bypasses`, `ejections`, `injectionstops` of `emergency.bulkhead.io` | get, list, watch, patch, delete | cluster | the kill switch; a time limit that nobody keeps is given its Job, and what is over is deleted |
//! | `bypasses/status` of `emergency.bulkhead.io` | patch | cluster | how far a bypass has come |
//! | `jobs.batch` | get, create | cluster | the Job that keeps a time limit |
//! | `events.events.k8s.io` | create, patch | cluster | telling people which pods miss their sidecar and which policies cannot be honoured |
//! | `pods/eviction` | create | cluster | restarting those pods; only where that was chosen |
//! | `configmaps` | list, create, patch | own namespace | what proxies hold, by replica; their names are those of pods |
//! | `certificateauthorities.ca.bulkhead.io` named `bulkhead` | get | own namespace | what proxies are to hold |
//! | `certificateauthorities/status.ca.bulkhead.io` named `bulkhead` | patch | own namespace | how many hold it, and who does not |
//! | `leases` named `bulkhead-control` | get, update | own namespace | one replica does what needs doing once |
//! | `leases` | create | own namespace | the first lease; `create` cannot be limited to a name |
//! | `clusterroles` named as `BULKHEAD_CONTROL_OWNER` says | get | cluster | what owns the lease, so that it goes with the installation |

pub mod app;
pub mod audit;
pub mod config;
pub mod emergency;
mod holders;
pub mod hub;
pub mod index;
pub mod metrics;
mod missing;
pub mod object;
mod server;
mod service;
mod source;
