//! `bulkhead ca status`: what signs until when, who holds it, and who waits.

use std::io::Write;

use bulkhead_runtime::clock::Clock;
use clap::Args;

use crate::authority::report;
use crate::cluster::{ClusterArgs, block_on};
use crate::commands::Output;

/// Show every authority, what proxies hold, and what each replica does.
///
/// It works while the CA is down: what cannot be known then is said. Ends with
/// exit code 1 where no replica is ready or there is no CertificateAuthority.
/// The fields of JSON and YAML are stable; docs/authority.md names them.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is written
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let now = Clock::system().now();
        let report = block_on(async {
            let cluster = self.cluster.connect().await?;
            Ok(report::gather(&cluster, now).await)
        })?;
        let mut out = std::io::stdout().lock();
        match self.output.structured(&report)? {
            Some(text) => out.write_all(text.as_bytes())?,
            None => {
                for line in &report.switches {
                    writeln!(out, "!! {line}")?;
                }
                out.write_all(report.to_text(now).as_bytes())?;
            }
        }
        if report.authority.is_none() {
            anyhow::bail!("the CertificateAuthority could not be read: what was said above is why");
        }
        if !report.is_up() {
            anyhow::bail!(
                "no replica of the CA is ready: certificates that are out serve on until they \
                 expire, and none is renewed"
            );
        }
        Ok(())
    }
}
