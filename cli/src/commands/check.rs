//! `bulkhead check`: whether everything is as it should be, and what to do
//! where it is not.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use bulkhead_runtime::clock::Clock;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::check::finding::Status;
use crate::check::{Report, check};
use crate::cluster::{ClusterArgs, block_on};
use crate::moment;

/// Look at the whole installation, and say what is wrong and what to do.
///
/// Needs nothing but the API server; what you may not look at is skipped with a
/// word. Ends with exit code 1 where there is a problem.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Count whatever expires within this as a problem. Without it: 60 days for a
    /// root, and a third of its life for what renews itself, for then it was not
    /// renewed in time
    #[arg(long, value_name = "DURATION", value_parser = moment::parse_span)]
    expires_within: Option<Duration>,
    /// How the findings are written
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let report = block_on(async {
            let cluster = self.cluster.connect().await?;
            Ok(check(&cluster, self.expires_within, Clock::system().now()).await)
        })?;
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Text => write_text(&mut out, &report)?,
            Output::Json => writeln!(out, "{:#}", to_json(&report))?,
        }
        match report.problems() {
            0 => Ok(()),
            1 => bail!("there is a problem"),
            problems => bail!("there are {problems} problems"),
        }
    }
}

fn write_text(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    for line in &report.switches {
        writeln!(out, "!! {line}")?;
    }
    let kubernetes = report.kubernetes.as_deref().unwrap_or("not reached");
    writeln!(
        out,
        "bulkhead {}, Kubernetes {kubernetes}",
        env!("CARGO_PKG_VERSION")
    )?;
    for finding in &report.findings {
        let (check, status) = (finding.check, finding.status.as_str());
        writeln!(out, "{status:<8} {check:<13} {}", finding.message)?;
        if let Some(remedy) = &finding.remedy
            && finding.status != Status::Ok
        {
            writeln!(out, "{:22} → {remedy}", "")?;
        }
    }
    Ok(())
}

fn to_json(report: &Report) -> serde_json::Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kubernetes": report.kubernetes,
        "healthy": report.problems() == 0,
        "switches": report.switches,
        "findings": report.findings,
    })
}
