//! `bulkhead on`: the way back from every level of the kill switch.

use std::io::Write;

use bulkhead_crds::emergency::InjectionStop;
use bulkhead_runtime::clock::Clock;
use clap::Args;

use crate::cluster::{ClusterArgs, block_on};
use crate::emergency::{ScopeArgs, banner, find, is_obeyed_by_the_api_server, leave_out, remove};

/// The way back from off, bypass and eject.
///
/// Turns back every switch of the scope, whoever turned it; without a scope,
/// every switch of the cluster.
#[derive(Debug, Args)]
pub struct On {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl On {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.turn_back())
    }

    async fn turn_back(self) -> anyhow::Result<()> {
        let clock = Clock::system();
        let cluster = self.cluster.connect().await?;
        let scope = self.scope.resolve(&cluster).await?;
        let mut out = std::io::stdout().lock();
        let stops = find::<InjectionStop>(&cluster, &scope).await?;
        for stop in &stops {
            remove(&cluster, stop).await?;
            writeln!(
                out,
                "turned back: {}",
                banner::line(stop, &cluster.system_namespace, clock.now())
            )?;
        }
        if !stops.is_empty() && !is_obeyed_by_the_api_server(&cluster).await? {
            leave_out(&cluster, clock.now()).await?;
        }
        banner::show(&cluster, clock.now()).await?;
        Ok(())
    }
}
