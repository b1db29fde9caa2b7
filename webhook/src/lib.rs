//! The admission webhook: the API server asks it about pods that are being
//! created, and it answers with the patch that gives them their sidecar.
//!
//! ```text
//!  kube-apiserver ──AdmissionReview──▶ server ─▶ review ─▶ admission ─▶ bulkhead_inject
//!        ▲                            (HTTPS)                  │  │
//!        │                                                     │  └─▶ events, metrics
//!        ├── watch, GET ◀─────────────────────── namespaces ◀──┘
//!        ├── apply ◀──── registration ◀── our CAs ── serving_certificate ──▶ server
//!        └── Secret ◀───────────────────────────────────────┘
//! ```
//!
//! It holds no state: everything is in the API server, so any number of
//! replicas run side by side. Without an API server it answers all the same,
//! with namespaces that it was given; the demo and the tests use that.
//!
//! In reading order:
//! - [`config`]: what the process is told.
//! - [`app`]: which parts run.
//! - `server`: HTTPS, and the limits that hold against anybody.
//! - [`review`]: AdmissionReview on the wire.
//! - `admission`: one review, from its bytes to its answer.
//! - [`namespaces`]: what is known of the pods' namespaces.
//! - [`registration`]: for which pods the API server calls us.
//! - [`serving_certificate`]: by which certificate it verifies us.
//! - `stops`: the switches that are on.
//! - [`self_test`]: whether the API server reaches us.
//! - `events`, `metrics`: what people see.
//!
//! # What the ServiceAccount must be allowed
//!
//! | resource | verbs | where | why |
//! |---|---|---|---|
//! | `namespaces` | get, list, watch | cluster | labels and annotations decide about pods |
//! | `mutatingwebhookconfigurations` named `bulkhead-injector` | get, list, watch, patch | cluster | registration and its upkeep |
//! | `mutatingwebhookconfigurations` | create | cluster | the first registration; `create` cannot be limited to a name |
//! | `secrets` named `bulkhead-webhook-tls` | get, list, watch, update | own namespace | the serving certificate |
//! | `secrets` | create | own namespace | the first serving certificate |
//! | `injectionstops.emergency.bulkhead.io` | list, watch | cluster | a restart does not turn a switch back |
//! | `pods` | create | own namespace | the self-test, as a dry run; the chart's policy refuses anything else |
//! | `clusterroles` named as `BULKHEAD_WEBHOOK_OWNER` says | get | cluster | the owner of what the webhook makes |
//! | `events.events.k8s.io` | create, patch | cluster | telling people about refused and skipped pods |
//!
//! `unregister` also needs delete on the configuration.

mod admission;
pub mod app;
pub mod config;
mod events;
mod metrics;
pub mod namespaces;
pub mod registration;
pub mod review;
pub mod self_test;
mod server;
pub mod serving_certificate;
mod stops;
