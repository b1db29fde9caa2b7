//! `bulkhead off`: level 1 of the kill switch.

use std::io::Write;

use bulkhead_crds::emergency::InjectionStop;
use bulkhead_runtime::clock::Clock;
use clap::Args;

use crate::cluster::{ClusterArgs, block_on};
use crate::emergency::{
    Proof, Request, ScopeArgs, TermsArgs, is_obeyed_by_the_api_server, leave_out, manifest, prove,
    turn, write_turned,
};

/// EMERGENCY, level 1: stop giving sidecars to new pods.
///
/// It works with every pod of Bulkhead dead: the API server itself leaves new
/// pods alone. Pods that run keep their sidecars; `bulkhead bypass` takes those
/// out of the path.
#[derive(Debug, Args)]
pub struct Off {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    terms: TermsArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Off {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.turn())
    }

    async fn turn(self) -> anyhow::Result<()> {
        let clock = Clock::system();
        let cluster = self.cluster.connect().await?;
        let scope = self.scope.resolve(&cluster).await?;
        let request = self.terms.request(scope, clock.now());
        let mut out = std::io::stdout();
        if self.terms.dry_run {
            let text = manifest::<InjectionStop>(&request, self.terms.output)?;
            return Ok(out.write_all(text.as_bytes())?);
        }
        let turned = turn::<InjectionStop>(&cluster, &request).await?;
        write_turned(&mut out, &cluster, &request, "Injection is off", &turned)?;
        let by_policy = is_obeyed_by_the_api_server(&cluster).await?;
        if !by_policy {
            leave_out(&cluster, clock.now()).await?;
            writeln!(
                out,
                "how      this Kubernetes is older than 1.36: the webhook's registration leaves \
                 the pods out, and the webhook ends that at its time"
            )?;
        }
        write_proof(&mut out, &prove(&cluster, &request.scope, by_policy).await)?;
        write_consequences(&mut out, &request)
    }
}

fn write_proof(out: &mut impl Write, proof: &Proof) -> anyhow::Result<()> {
    match proof {
        Proof::Shown(after) => writeln!(
            out,
            "checked  a pod that asks for a sidecar is accepted without one (dry run, after {} ms)",
            after.as_millis()
        )?,
        Proof::Unknown(why) => writeln!(out, "checked  no, a dry run was refused: {why}")?,
        Proof::Not(last) => anyhow::bail!(
            "the switch is there and is not obeyed yet: {last}. See that the chart's \
             MutatingAdmissionPolicy bulkhead-injection-stop is installed; as the last resort, \
             `kubectl delete mutatingwebhookconfiguration bulkhead-injector`"
        ),
    }
    Ok(())
}

fn write_consequences(out: &mut impl Write, request: &Request) -> anyhow::Result<()> {
    let options = request.scope.options();
    writeln!(
        out,
        "\nPods that run keep their sidecars. New pods run without: their traffic is plaintext, \
         and\nwhere STRICT is set it is refused (`bulkhead bypass{options}` opens that).\n\
         \nThe way back: bulkhead on{options}"
    )?;
    Ok(())
}
