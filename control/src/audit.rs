//! A record of everything that a proxy was refused: who asked, from where, for
//! what.
//!
//! Records are log lines on a target of their own, which no log level turns off.

use std::net::SocketAddr;

use bulkhead_core::discovery::ResourceName;
use bulkhead_core::identity::SpiffeId;

/// The target of the records, for filters.
pub const TARGET: &str = "bulkhead_control::audit";

/// Notes a name that was refused.
pub(crate) fn refused_name(
    from: SocketAddr,
    caller: &SpiffeId,
    node: &str,
    name: &str,
    reason: &'static str,
) {
    tracing::info!(
        target: TARGET,
        outcome = "refused",
        %from,
        caller = caller.as_str(),
        node,
        name = name.chars().take(128).collect::<String>(),
        reason,
        "a proxy asked for what is not its own; it was told that there is no such thing"
    );
}

/// Notes a stream that was refused.
pub(crate) fn refused_stream(from: SocketAddr, caller: &SpiffeId, node: &str, reason: &str) {
    tracing::info!(
        target: TARGET,
        outcome = "refused",
        %from,
        caller = caller.as_str(),
        node = node.chars().take(128).collect::<String>(),
        reason,
        "a stream was refused"
    );
}

/// Notes a proxy that says it stands beside a pod of another ServiceAccount.
pub(crate) fn foreign_pod(service_account: &str, name: &ResourceName) {
    tracing::info!(
        target: TARGET,
        outcome = "refused",
        service_account,
        %name,
        reason = "other_service_account",
        "a proxy asked for a pod whose ServiceAccount is not the one that it proved; it was told \
         that there is no such thing"
    );
}
