//! What a command says of the switch that it turned.

use std::io::Write;

use kube::ResourceExt as _;

use super::switch::{Limit, Switch, Turned};
use super::terms::{Request, end};
use crate::cluster::Cluster;
use crate::error;

/// What is true now, until when, who said so and why, and who ends it.
pub(crate) fn write_turned<K: Switch>(
    out: &mut impl Write,
    cluster: &Cluster,
    request: &Request,
    what: &str,
    turned: &Turned<K>,
) -> anyhow::Result<()> {
    let switch = &turned.switch;
    let terms = switch.terms();
    let end = end(terms.until.as_ref(), request.now);
    writeln!(out, "{what} in {}, {end}.", request.scope)?;
    let kind = K::kind(&()).to_ascii_lowercase();
    let namespace = switch.namespace().unwrap_or_default();
    writeln!(
        out,
        "switch   {kind}/{} in namespace {namespace}",
        switch.name_any()
    )?;
    writeln!(out, "why      {}", terms.reason)?;
    if let Some(by) = &terms.by {
        writeln!(out, "who      {by}")?;
    }
    match &turned.limit {
        Limit::None => {}
        Limit::Job => writeln!(
            out,
            "ends     by itself: Kubernetes deletes the switch then"
        )?,
        Limit::Ours(error) => writeln!(
            out,
            "ends     only if bulkhead-control in {} runs, or by `bulkhead on`: the Job that \
             would end it could not be made: {}",
            cluster.system_namespace,
            error::of_kube(error)
        )?,
    }
    Ok(())
}
