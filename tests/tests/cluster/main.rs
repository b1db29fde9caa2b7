//! Bulkhead on a real Kubernetes node: its chart, its images, real pods.
//!
//! `./scripts/test cluster` starts the node, installs the chart and runs these;
//! `./scripts/test cluster -- NAME` those whose name contains NAME.
//!
//! - [`pods`]: what comes out of a Deployment, a Job, a StatefulSet.
//! - [`traffic`]: what pods say to each other.

mod pods;
mod traffic;
