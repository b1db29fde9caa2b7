//! How many instructions the proxy executes for one piece of work, beside what is
//! kept in the repository: a figure that is the same on a busy machine.
//!
//! Three things make it so. One thing happens at a time: the next request is sent,
//! and the application answers, when both proxies are asleep. Every count is the
//! difference of two runs, one with more work than the other, so that neither
//! starting nor stopping is in it. And only Rust's instructions are counted, of the
//! thread that serves connections.

mod baseline;
pub(super) mod callgrind;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};

use self::baseline::{Baseline, Count, check_judgement};
use self::callgrind::{Executed, Functions};
use super::{Ground, Layer, ours, request};
use crate::authority::{RunningCa, Tokens};
use crate::grpc::Unary;
use crate::http1::{Fresh, Kept, start_app};
use crate::load::Caller;
use crate::machine;
use crate::results::say;
use crate::settings::Settings;
use crate::stillness::Stillness;

/// What is counted.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    layer: Layer,
    kind: Kind,
    /// How much of it there is in the two runs.
    times: [u32; 2],
}

#[derive(Clone, Copy)]
enum Kind {
    Kept,
    New,
    Grpc,
}

const WORK: [Work; 5] = [
    Work {
        name: "a request, L7",
        layer: Layer::L7,
        kind: Kind::Kept,
        times: [50, 250],
    },
    Work {
        name: "a request, L4",
        layer: Layer::L4,
        kind: Kind::Kept,
        times: [50, 250],
    },
    Work {
        name: "a connection with a request, L7",
        layer: Layer::L7,
        kind: Kind::New,
        times: [20, 80],
    },
    Work {
        name: "a connection with a request, L4",
        layer: Layer::L4,
        kind: Kind::New,
        times: [20, 60],
    },
    Work {
        name: "a gRPC call",
        layer: Layer::L7,
        kind: Kind::Grpc,
        times: [50, 250],
    },
];

pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let how = &settings.instructions;
    let directory = tempfile::tempdir()?;
    let ca = RunningCa::start(settings, directory.path(), Tokens::Jwks).await?;
    let stillness = Stillness::default();
    let ground = Ground {
        settings,
        directory: directory.path(),
        ca: &ca,
        app: start_app(stillness.clone()).await?,
        valgrind: Some(&how.valgrind),
    };
    let mut counts = BTreeMap::new();
    for work in WORK {
        let (few, many) = (
            execute(&ground, &stillness, work, work.times[0]).await?,
            execute(&ground, &stillness, work, work.times[1]).await?,
        );
        let times = f64::from(work.times[1] - work.times[0]);
        for (side, few, many) in [("client", &few.0, &many.0), ("server", &few.1, &many.1)] {
            let count = Count::new(&difference(few, many, times));
            let what = format!("{}, {side}", work.name);
            say(&format!(
                "{what}: {} instructions, {} allocations",
                count.instructions, count.allocations
            ));
            check_judgement(&count)?;
            counts.insert(what, count);
        }
    }
    let compiler = machine::compiler();
    let counted = Baseline { compiler, counts };
    if how.write {
        return counted.write(&how.baseline);
    }
    compare(&counted, &how.baseline)
}

/// What each function of the client's and of the server's worker has executed
/// while so much work was done.
async fn execute(
    ground: &Ground<'_>,
    stillness: &Stillness,
    work: Work,
    times: u32,
) -> Result<(Functions, Functions)> {
    let pair = ours::start(ground, work.layer).await?;
    let (client, server) = (pair.client.id(), pair.server.id());
    stillness.follow(client);
    stillness.follow(server);
    match work.kind {
        Kind::Kept => {
            let caller = Kept::connect(pair.entry, &request("")).await?;
            one_by_one(caller, times, stillness).await?;
        }
        Kind::New => {
            let request = request("connection: close\r\n");
            let caller = Fresh {
                address: pair.entry,
                request,
            };
            one_by_one(caller, times, stillness).await?;
        }
        Kind::Grpc => {
            let mut callers = Unary::connect(pair.entry, 1, 1).await?;
            one_by_one(callers.remove(0), times, stillness).await?;
        }
    }
    // Whoever serves the caller's connection learns that it is gone.
    stillness.reached().await;
    stillness.forget();
    // Callgrind writes what it has counted when the programs end.
    drop(pair);
    Ok((
        callgrind::of_worker(ground.directory, client)?,
        callgrind::of_worker(ground.directory, server)?,
    ))
}

async fn one_by_one(mut caller: impl Caller, times: u32, stillness: &Stillness) -> Result<()> {
    for _ in 0..times {
        stillness.reached().await;
        caller.call().await?;
    }
    stillness.reached().await;
    Ok(())
}

fn difference(few: &Functions, many: &Functions, times: f64) -> Functions {
    let each = many.iter().map(|(name, many)| {
        let few = few.get(name).copied().unwrap_or_default();
        let executed = Executed {
            instructions: (many.instructions - few.instructions) / times,
            allocations: (many.allocations - few.allocations) / times,
        };
        (name.clone(), executed)
    });
    each.collect()
}

fn compare(counted: &Baseline, path: &Path) -> Result<()> {
    let before = Baseline::read(path)?;
    if before.compiler != counted.compiler {
        say(&format!(
            "not compared: {} is of {}, and this is {}; scripts/instructions --write makes new ones",
            path.display(),
            before.compiler,
            counted.compiler
        ));
        return Ok(());
    }
    let mut faults = Vec::new();
    for (what, count) in &counted.counts {
        match before.counts.get(what) {
            Some(before) => faults.extend(count.judge(what, before)),
            None => faults.push(format!("{what}: there is nothing to compare it with")),
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "{}\nIf it is worth it, scripts/instructions --write makes these the counts to compare with.",
        faults.join("\n")
    )
}
