//! All that `bulkhead ca status` knows. As JSON and YAML its fields are stable:
//! docs/authority.md says what each means, fields are added, and none goes or
//! changes its meaning without another `schema`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use bulkhead_crds::certificate_authority::{
    Authority, AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus,
    Upstream,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::object;
use super::replicas::{Replica, replicas};
use super::rotation::Known;
use crate::cluster::Cluster;
use crate::emergency::banner;
use crate::{error, moment};

/// Which form the report has.
const SCHEMA: &str = "bulkhead.io/ca-status/v1";

/// How the certificate authority stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    /// A line for each switch of the kill switch that is on.
    pub switches: Vec<String>,
    /// The root that people asked for, where they did.
    pub ordered_root: Option<u32>,
    /// The status of the CertificateAuthority as it is; none where there is none.
    pub authority: Option<CertificateAuthorityStatus>,
    pub replicas: Vec<Replica>,
    /// What could not be learned, and why.
    pub unknown: Vec<String>,
}

/// Asks for all of it. What cannot be had is said; nothing else goes missing
/// with it.
pub async fn gather(cluster: &Cluster, now: SystemTime) -> Report {
    let (found, replicas, switches) = futures::join!(
        object::find(cluster),
        replicas(cluster),
        banner::lines(cluster, now)
    );
    let mut report = Report {
        schema: SCHEMA,
        switches,
        ordered_root: None,
        authority: None,
        replicas: Vec::new(),
        unknown: Vec::new(),
    };
    match found {
        Ok(Some(CertificateAuthority { spec, status, .. })) => {
            report.ordered_root = spec.root_generation;
            report.authority = status;
            if report.authority.is_none() {
                let why = "the CA has not written the status of its CertificateAuthority yet";
                report.unknown.push(why.to_owned());
            }
        }
        Ok(None) => report.unknown.push(format!(
            "which authorities there are: there is no certificateauthority/bulkhead in {}, which \
             a CA that runs makes",
            cluster.system_namespace
        )),
        Err(error) => report.unknown.push(format!(
            "which authorities there are: {}",
            error::of_kube(&error)
        )),
    }
    match replicas {
        Ok(replicas) => report.replicas = replicas,
        Err(error) => report
            .unknown
            .push(format!("what the CA does now: {}", error::describe(&error))),
    }
    if report.replicas.is_empty() && report.unknown.len() < 2 {
        report.unknown.push(
            "what the CA does now: it has no pod. Certificates that are out serve on until they \
             expire; what is said of authorities is what the CA said last"
                .to_owned(),
        );
    }
    for replica in &report.replicas {
        if let Some(problem) = &replica.problem {
            let pod = &replica.pod;
            report
                .unknown
                .push(format!("what {pod} does now: {problem}"));
        }
    }
    report
}

impl Report {
    /// Whether a CA was there to be asked.
    pub fn is_up(&self) -> bool {
        self.replicas.iter().any(|replica| replica.is_ready)
    }

    /// For people.
    pub fn to_text(&self, now: SystemTime) -> String {
        let mut text = String::new();
        if let Some(status) = &self.authority {
            write_phase(&mut text, status);
            write_authorities(&mut text, &status.authorities, now);
            write_upstream(&mut text, status.upstream.as_ref(), now);
            write_proxies(&mut text, status, now);
        }
        write_replicas(&mut text, &self.replicas);
        for unknown in &self.unknown {
            line(&mut text, format_args!("not known: {unknown}"));
        }
        text
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn write_phase(text: &mut String, status: &CertificateAuthorityStatus) {
    let phase = status
        .phase
        .map_or_else(|| "not known".to_owned(), |phase| format!("{phase:?}"));
    let message = status.message.as_deref().unwrap_or("the CA said nothing");
    line(text, format_args!("{phase}: {message}"));
    if let Some(bundle) = &status.trust_bundle {
        let plural = if bundle.roots == 1 { "" } else { "s" };
        line(
            text,
            format_args!(
                "trust bundle {}, sequence {}, {} root{plural}",
                bundle.id, bundle.sequence, bundle.roots
            ),
        );
    }
}

fn write_authorities(text: &mut String, authorities: &[Authority], now: SystemTime) {
    if authorities.is_empty() {
        return;
    }
    let heading = [
        "KIND",
        "GENERATION",
        "STATE",
        "NOT BEFORE",
        "NOT AFTER",
        "KEY",
        "FINGERPRINT",
    ];
    let mut rows = vec![heading.map(ToOwned::to_owned)];
    let mut sorted: Vec<_> = authorities.iter().collect();
    sorted.sort_by_key(|authority| (authority.kind, authority.generation));
    rows.extend(sorted.into_iter().map(|authority| row(authority, now)));
    line(text, format_args!(""));
    text.push_str(&table(&rows));
}

fn row(authority: &Authority, now: SystemTime) -> [String; 7] {
    let date = |time: Option<&Time>| {
        time.map_or_else(
            || "-".to_owned(),
            |time| moment::timestamp(time.0.into())[..10].to_owned(),
        )
    };
    let end = authority.not_after.as_ref().map(|time| time.0.into());
    let end = match end {
        Some(end) if authority.state != AuthorityState::Retired => {
            format!(
                "{} ({})",
                date(authority.not_after.as_ref()),
                moment::relative(end, now)
            )
        }
        _ => date(authority.not_after.as_ref()),
    };
    [
        authority.kind.to_string(),
        authority.generation.to_string(),
        authority.state.to_string(),
        date(authority.not_before.as_ref()),
        end,
        authority.key_type.clone().unwrap_or_else(|| "-".to_owned()),
        shortened(authority),
    ]
}

/// Enough of a fingerprint to tell it from others; a key ID whole.
fn shortened(authority: &Authority) -> String {
    const SHOWN: usize = 16;
    let whole = &authority.fingerprint;
    match (authority.kind, whole.get(..SHOWN)) {
        (AuthorityKind::Root | AuthorityKind::Intermediate, Some(start)) if whole.len() > SHOWN => {
            format!("{start}…")
        }
        _ => whole.clone(),
    }
}

fn write_upstream(text: &mut String, upstream: Option<&Upstream>, now: SystemTime) {
    let Some(upstream) = upstream else {
        return;
    };
    let named = |value: serde_json::Result<serde_json::Value>| {
        let value = value
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned));
        value.unwrap_or_default()
    };
    let kind = named(serde_json::to_value(upstream.kind));
    let signs = named(serde_json::to_value(upstream.signs));
    let state = named(serde_json::to_value(upstream.state));
    let last = upstream
        .last_success
        .as_ref()
        .map_or_else(String::new, |time| {
            format!(", signed last {}", moment::relative(time.0.into(), now))
        });
    let why = upstream.message.as_deref();
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    line(
        text,
        format_args!("\nupstream {kind}, signs each {signs}: {state}{last}{why}"),
    );
}

fn write_proxies(text: &mut String, status: &CertificateAuthorityStatus, now: SystemTime) {
    match Known::of(status, now) {
        Known::Nothing => line(
            text,
            format_args!(
                "\nproxies: nobody knows which hold this bundle; control reports it, a few seconds \
                 after it changed"
            ),
        ),
        Known::Said {
            total,
            holding,
            renewed,
            missing,
            stale_since,
        } => {
            let stale = stale_since.map_or_else(String::new, |since| {
                format!(" (as control said {since}: is it running?)")
            });
            line(
                text,
                format_args!(
                    "\nproxies: {holding} of {total} hold this bundle, {renewed} have certificates \
                     below its first root{stale}"
                ),
            );
            for proxy in &missing {
                line(text, format_args!("  {}: {}", proxy.pod, proxy.reason));
            }
        }
    }
}

fn write_replicas(text: &mut String, replicas: &[Replica]) {
    if replicas.is_empty() {
        return;
    }
    let heading = [
        "REPLICA",
        "READY",
        "PER SECOND",
        "ISSUED",
        "REFUSED",
        "WAITING",
    ];
    let mut rows = vec![heading.map(ToOwned::to_owned)];
    rows.extend(replicas.iter().map(|replica| {
        let load = replica.load.as_ref();
        let number = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |it| it.to_string());
        let rate = load.and_then(|load| load.issued_per_second);
        [
            replica.pod.clone(),
            if replica.is_ready { "yes" } else { "NO" }.to_owned(),
            rate.map_or_else(|| "?".to_owned(), |rate| format!("{rate:.1}")),
            number(load.and_then(|load| load.issued_total)),
            number(load.map(|load| load.refused.values().sum())),
            number(load.and_then(|load| load.queue.length)),
        ]
    }));
    line(text, format_args!(""));
    text.push_str(&table(&rows));
    let loads = replicas.iter().filter_map(|replica| replica.load.as_ref());
    let mut refused: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in loads.clone().flat_map(|load| &load.refused) {
        *refused.entry(reason).or_default() += count;
    }
    for (reason, count) in refused.into_iter().filter(|(_, count)| *count > 0) {
        line(text, format_args!("refused {count}: {reason}"));
    }
    for waiting in loads.flat_map(|load| &load.queue.waiting) {
        let class = waiting.class.as_deref();
        let class = class.map_or_else(String::new, |class| format!(" ({class})"));
        let count = waiting.waiting.unwrap_or(1);
        line(
            text,
            format_args!("waits: {}{class}, {count} calls", waiting.caller),
        );
    }
}

/// Columns that are as wide as they must be.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
