//! How fast Bulkhead's programs are: `./scripts/bench`, which builds them,
//! gets what this needs and starts it.
//!
//! ```text
//!  core 0: this process                         core 1: the programs, as they are in images
//!    load ──────────────────────────────────────▶ bulkhead-webhook
//!    load ──────────────────────────────────────▶ bulkhead-ca ──▶ kube-apiserver (core 0)
//!    load ──▶ client proxy ══mTLS══▶ server proxy (both on core 1) ──▶ app (core 0)
//! ```
//!
//! Every program under test is a process of its own, held to one core, and
//! whatever asks it for work is on the other. What is compared is measured in
//! turns within one run, so that whatever else the machine does hits all alike.
//!
//! In reading order:
//! - `settings`: what to measure, and with what.
//! - `process`: a program on a core, with its CPU time and memory.
//! - `load`: work at a fixed rate or as fast as it is done.
//! - `http1`, `grpc`: the clients and the application.
//! - `stillness`: programs that have nothing left to do.
//! - `results`: figures, their table and their lines in a file.
//! - `machine`: what the figures were measured on.
//! - `authority`: a running CA, with identities for everybody.
//! - `webhook`, `ca`, `proxy`: the benchmarks of one program each.
//! - `cluster`: those of the whole, in a real cluster.

mod authority;
mod ca;
mod cluster;
mod grpc;
mod http1;
mod load;
mod machine;
mod process;
mod proxy;
mod results;
mod settings;
mod stillness;
mod webhook;

use anyhow::{Result, bail};
use bulkhead_runtime::descriptors;
use tokio::task::LocalSet;

use crate::results::Journal;
use crate::settings::{Bench, Command, Settings};

fn main() -> Result<()> {
    match Command::read(std::env::args().skip(1))? {
        Command::RawSignatures(time) => ca::print_raw_rates(time),
        Command::Run(settings) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, run(*settings))
        }
    }
}

async fn run(settings: Settings) -> Result<()> {
    descriptors::raise_limit();
    if settings.benches == [Bench::Instructions] {
        return proxy::instructions::run(&settings).await;
    }
    let mut journal = Journal::open(&settings.results)?;
    for bench in &settings.benches {
        match bench {
            Bench::Webhook => webhook::run(&settings, &mut journal).await?,
            Bench::Ca => ca::run(&settings, &mut journal).await?,
            Bench::Proxy => proxy::run(&settings, &mut journal).await?,
            Bench::Instructions => {
                bail!("instructions are counted alone; run ./scripts/instructions")
            }
            Bench::Cluster => cluster::run(&settings, &mut journal).await?,
        }
    }
    Ok(())
}
