//! Bulkhead behind a real Kubernetes API server.
//!
//! `./scripts/test apiserver` builds Kubernetes' programs and runs these;
//! `./scripts/test apiserver -- NAME` those whose name contains NAME.
//!
//! - [`cluster`]: an API server with the webhook in it.
//! - [`decision`]: whether a pod is injected, row by row.
//! - [`annotations`]: what people write, and what they are told.
//! - [`workloads`]: Deployments, Jobs and their pods.
//! - [`events`]: what people see who look at a workload.
//! - [`other_plugins`]: what else changes pods on their way.
//! - [`pod_security`]: what a namespace has to allow.
//! - [`registration`]: what the API server is told of the webhook, and when the
//!   webhook is away.
//! - [`self_test`]: when a replica is ready, and what goes with the
//!   installation.
//! - [`emergency`]: the kill switch, with every pod of ours dead.
//! - [`renewal`]: its certificate changes while pods are created.
//! - [`check`]: what `bulkhead check` finds.
//! - [`trust_bundle`]: its roots, where pods find them.
//! - [`behind`]: a replica of the CA that knows less than another.
//! - [`upstreams`]: Vault and cert-manager above the CA.
//! - [`control`]: what changes in the cluster reaches proxies.
//! - [`rotate_root`]: what people see and order of the CA.
//! - [`holders`]: which proxies hold the trust bundle.
//! - [`lost_secret`]: the CA's keys are gone, or another's are in their place.
//! - [`authority_object`]: the CA's own object, its Events and who writes them.
//! - [`root_rotation`]: the root is rotated, by the object's spec.
//! - [`pod_certificate`]: certificates by Kubernetes' own requests.
//! - [`certificate_authority`]: who gets a certificate, and who does not.
//! - [`node_proxy`]: and for whom else, where a node's proxy asks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod annotations;
mod authority_object;
mod behind;
mod certificate_authority;
mod check;
mod cluster;
mod control;
mod decision;
mod emergency;
mod events;
mod holders;
mod lost_secret;
mod node_proxy;
mod other_plugins;
mod pod_certificate;
mod pod_security;
mod registration;
mod renewal;
mod root_rotation;
mod rotate_root;
mod self_test;
mod stream;
mod trust_bundle;
mod upstreams;
mod workloads;
