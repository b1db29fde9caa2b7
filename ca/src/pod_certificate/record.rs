//! The audit record of a request: of the same form as that of a call, and where
//! those are.

use std::time::{SystemTime, UNIX_EPOCH};

use kube::ResourceExt as _;

use super::decision::Decision;
use super::request::PodCertificateRequest;
use crate::audit::TARGET;
use crate::metrics::Metrics;

/// Notes what became of a request, once that is stored.
pub(super) fn write(request: &PodCertificateRequest, decision: &Decision, metrics: &Metrics) {
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let spec = &request.spec;
    let namespace = request.namespace().unwrap_or_default();
    match decision {
        Decision::Issued { caller, issued } => {
            metrics.issued.inc();
            let svid = &issued.svid;
            tracing::info!(
                target: TARGET,
                outcome = "issued",
                request = request.name_any(),
                caller = caller.id().as_str(),
                pod = spec.pod_name,
                node = spec.node_name,
                authenticated_by = caller.source().as_str(),
                identity = svid.id().as_str(),
                serial = svid.serial(),
                not_before = seconds(svid.not_before()),
                not_after = seconds(svid.not_after()),
                "a certificate was issued"
            );
        }
        Decision::Refused { refusal } => {
            metrics.refused("pod_certificate");
            tracing::info!(
                target: TARGET,
                outcome = "refused",
                request = request.name_any(),
                namespace,
                pod = spec.pod_name,
                node = spec.node_name,
                reason = refusal.reason,
                detail = refusal.message,
                "a certificate was refused"
            );
        }
    }
}
