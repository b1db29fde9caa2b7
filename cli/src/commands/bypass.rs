//! `bulkhead bypass`: level 2 of the kill switch.

use std::io::Write;

use bulkhead_crds::emergency::Bypass as Switch;
use bulkhead_runtime::clock::Clock;
use clap::Args;

use crate::cluster::{ClusterArgs, block_on};
use crate::emergency::{ScopeArgs, TermsArgs, manifest, stand_aside, turn, write_turned};

/// EMERGENCY, level 2: take running sidecars out of the path.
///
/// They hand bytes on untouched: no mTLS, no policy. No pod is restarted and no
/// connection is dropped. Servers take plaintext before clients send it, so
/// nothing is refused in between, from STRICT on both sides too. It works with
/// control up (within 2 s), and down.
#[derive(Debug, Args)]
pub struct Bypass {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    terms: TermsArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Bypass {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.turn())
    }

    async fn turn(self) -> anyhow::Result<()> {
        let cluster = self.cluster.connect().await?;
        let scope = self.scope.resolve(&cluster).await?;
        let request = self.terms.request(scope, Clock::system().now());
        let mut out = std::io::stdout();
        if self.terms.dry_run {
            let text = manifest::<Switch>(&request, self.terms.output)?;
            return Ok(out.write_all(text.as_bytes())?);
        }
        let turned = turn::<Switch>(&cluster, &request).await?;
        let what = "Sidecars stand aside";
        write_turned(&mut out, &cluster, &request, what, &turned)?;
        stand_aside(&cluster, &request.scope, &turned.switch, &mut out).await?;
        let options = request.scope.options();
        writeln!(
            out,
            "\nTraffic between these pods is plaintext, and no policy is enforced. New pods still \
             get\nsidecars, which stand aside too (`bulkhead off{options}` for none).\n\
             \nThe way back: bulkhead on{options}"
        )?;
        Ok(())
    }
}
