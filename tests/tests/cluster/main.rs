//! Bulkhead on a real Kubernetes node: its chart, its images, real pods.
//!
//! `./scripts/test cluster` starts the node, installs the chart and runs these;
//! `./scripts/test cluster -- NAME` those whose name contains NAME.
//!
//! - [`authority`]: the CA as people look at it.
//! - [`policy`]: who may connect, as PeerAuthentication says.
//! - [`discovery`]: what sidecars know of where connections go.
//! - [`peers`]: a pod with Istio's Envoy.
//! - [`pod_certificates`]: a pod without a sidecar whose kubelet has a certificate.
//! - [`security`]: what a cluster demands of pods, and is told of them.
//! - [`outages`]: what goes on while ours are away.
//! - [`emergency`]: the kill switch.
//! - [`lifecycle`]: upgrade and uninstallation.
//! - [`short_lived`]: certificates and roots that change while they are in use.
//! - [`workload_api`]: an application that asks for its own SVIDs.
//! - [`certificate`], [`programs`], [`afterwards`]: what several of these need.
//! - [`pods`]: what comes out of a Deployment, a Job, a StatefulSet.
//! - [`traffic`]: what pods say to each other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod afterwards;
mod authority;
mod certificate;
mod discovery;
mod emergency;
mod lifecycle;
mod outages;
mod peers;
mod pod_certificates;
mod pods;
mod policy;
mod programs;
mod security;
mod short_lived;
mod traffic;
mod workload_api;
