//! `bulkhead ca log`: what was issued to whom.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use bulkhead_runtime::clock::Clock;
use clap::Args;

use crate::authority::audit_log::{self, Filter, Record};
use crate::cluster::{ClusterArgs, block_on};
use crate::emergency::banner;
use crate::moment;

/// Show what was issued to whom, and what was refused and why.
///
/// The records are lines of the logs of the CA's pods, so there are as many of
/// them as the nodes keep; a log collector keeps more. With --serial, exit code 1
/// says that none was found.
#[derive(Debug, Args)]
pub(super) struct Log {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Only of this caller: a SPIFFE ID, or NAMESPACE/SERVICEACCOUNT
    #[arg(long, value_name = "ID")]
    identity: Option<String>,
    /// Only this certificate, by its serial number in hexadecimal
    #[arg(long, value_name = "SERIAL", conflicts_with = "refused")]
    serial: Option<String>,
    /// Only what was not issued
    #[arg(long)]
    refused: bool,
    /// How far back, such as 1h or 7d; all there is where it is left out
    #[arg(long, value_name = "DURATION", value_parser = moment::parse_span)]
    since: Option<Duration>,
    /// Go on with what is written from now on, by replicas that are made later too
    #[arg(long, short)]
    follow: bool,
    /// How a record is written: a line for people, or its JSON on a line
    #[arg(long, short, value_enum, default_value = "text")]
    output: Lines,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Lines {
    Text,
    Json,
}

impl Log {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.show())
    }

    async fn show(self) -> anyhow::Result<()> {
        let now = Clock::system().now();
        let since = self.since.and_then(|since| now.checked_sub(since));
        let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
        let cluster = self.cluster.connect().await?;
        banner::show(&cluster, now).await?;
        let filter = Filter {
            identity: self.identity,
            serial: self.serial,
            is_refused: self.refused,
        };
        let mut out = std::io::stdout();
        let mut write = |record: &Record| -> anyhow::Result<()> {
            match self.output {
                Lines::Text => writeln!(out, "{}", record.to_line())?,
                Lines::Json => writeln!(out, "{}", record.to_json())?,
            }
            Ok(out.flush()?)
        };
        if self.follow {
            return tokio::select! {
                followed = audit_log::follow(&cluster, &filter, since, now, write) => followed,
                // What was shown was shown: that is how following ends.
                _ = tokio::signal::ctrl_c() => Ok(()),
            };
        }
        let (records, problems) = audit_log::read(&cluster, &filter, since, now).await?;
        records.iter().try_for_each(&mut write)?;
        for problem in &problems {
            writeln!(std::io::stderr(), "not read: {problem}")?;
        }
        match (&filter.serial, records.is_empty(), problems.is_empty()) {
            (Some(serial), true, _) => bail!(
                "no record has the serial number {serial}: it was issued before these logs begin, \
                 or not by this CA"
            ),
            (_, true, false) => bail!("no log of the CA could be read"),
            _ => Ok(()),
        }
    }
}
