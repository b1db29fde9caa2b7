//! A record of what a proxy was refused: who asked, from where, for what.
//!
//! Records are log lines on a target of their own, which no log level turns off.
//! Of one identity there are a few in a minute, and how many were left out
//! before: a proxy that asks for what it may not have again and again must not
//! fill the disk of a node. The metrics count all of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_core::discovery::ResourceName;
use bulkhead_core::identity::SpiffeId;
use tokio::time::Instant;

/// The target of the records, for filters.
pub const TARGET: &str = "bulkhead_control::audit";

/// How many records there are of one identity in a [`WINDOW`].
const MAX_RECORDS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// How many identities are remembered before old ones are forgotten.
const MANY: usize = 1000;

/// Writes the records. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Audit(Arc<Mutex<HashMap<String, Written>>>);

/// What was written of one identity.
#[derive(Debug)]
struct Written {
    since: Instant,
    records: u32,
    left_out: u64,
}

impl Audit {
    /// Whether there may be one more record of somebody; if so, how many were
    /// left out since the last one.
    fn may_write(&self, who: &str) -> Option<u64> {
        let now = Instant::now();
        let is_over = |written: &Written| now >= written.since + WINDOW;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MANY {
            all.retain(|_, written| !is_over(written));
        }
        let written = all.entry(who.to_owned()).or_insert_with(|| Written {
            since: now,
            records: 0,
            left_out: 0,
        });
        if is_over(written) {
            written.since = now;
            written.records = 0;
        }
        if written.records >= MAX_RECORDS {
            written.left_out += 1;
            return None;
        }
        written.records += 1;
        Some(std::mem::take(&mut written.left_out))
    }

    /// Notes a name that was refused.
    pub(crate) fn refused_name(
        &self,
        from: SocketAddr,
        caller: &SpiffeId,
        node: &str,
        name: &str,
        reason: &'static str,
    ) {
        let Some(left_out) = self.may_write(caller.as_str()) else {
            return;
        };
        tracing::info!(
            target: TARGET,
            outcome = "refused",
            %from,
            caller = caller.as_str(),
            node,
            name = name.chars().take(128).collect::<String>(),
            reason,
            left_out,
            "a proxy asked for what is not its own; it was told that there is no such thing"
        );
    }

    /// Notes a stream that was refused.
    pub(crate) fn refused_stream(
        &self,
        from: SocketAddr,
        caller: &SpiffeId,
        node: &str,
        reason: &str,
    ) {
        let Some(left_out) = self.may_write(caller.as_str()) else {
            return;
        };
        tracing::info!(
            target: TARGET,
            outcome = "refused",
            %from,
            caller = caller.as_str(),
            node = node.chars().take(128).collect::<String>(),
            reason,
            left_out,
            "a stream was refused"
        );
    }

    /// Notes a connection too many of one identity.
    pub(crate) fn refused_connection(&self, from: SocketAddr, caller: &SpiffeId) {
        let Some(left_out) = self.may_write(caller.as_str()) else {
            return;
        };
        tracing::info!(
            target: TARGET,
            outcome = "refused",
            %from,
            caller = caller.as_str(),
            reason = "too_many_connections",
            left_out,
            "a connection was refused: its identity holds as many as one may hold at a replica"
        );
    }

    /// Notes a proxy that says it stands beside a pod of another ServiceAccount.
    pub(crate) fn foreign_pod(&self, namespace: &str, service_account: &str, name: &ResourceName) {
        let Some(left_out) = self.may_write(&format!("{namespace}/{service_account}")) else {
            return;
        };
        tracing::info!(
            target: TARGET,
            outcome = "refused",
            namespace,
            service_account,
            %name,
            reason = "other_service_account",
            left_out,
            "a proxy asked for a pod whose ServiceAccount is not the one that it proved; it was \
             told that there is no such thing"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_one_identity_there_are_a_few_records_a_minute_and_the_rest_is_counted() {
        let audit = Audit::default();
        for _ in 0..MAX_RECORDS {
            assert_eq!(audit.may_write("front"), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(audit.may_write("front"), None);
        }
        assert_eq!(audit.may_write("cart"), Some(0), "others are not concerned");
        tokio::time::advance(WINDOW).await;
        assert_eq!(audit.may_write("front"), Some(3));
        assert_eq!(audit.may_write("front"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn identities_of_which_nothing_is_written_any_more_are_forgotten() {
        let audit = Audit::default();
        for number in 0..MANY {
            audit.may_write(&number.to_string());
        }
        tokio::time::advance(WINDOW).await;
        audit.may_write("front");
        assert_eq!(audit.0.lock().unwrap().len(), 1);
    }
}
