//! The whole on a real Kubernetes node: what a sidecar adds to a pod's start,
//! what control and a proxy need in a large cluster, and how soon the kill
//! switch is obeyed. `./scripts/bench cluster` starts the node and installs the
//! chart.
//!
//! - `pods`: from the creation of a pod until it is ready.
//! - `switch`: `bulkhead off`, until a pod comes without a sidecar.
//! - `objects`: Services and pods that only the API server knows.
//! - `memory`: what a container takes.
//! - `proxies`: clients of control that stand for proxies, and a bypass.

mod memory;
mod objects;
mod pods;
mod proxies;
mod switch;

use anyhow::Result;
use bulkhead_tests::cluster::{self, Cluster};

use crate::results::{Bound, Figure, Journal, Table, Target, say};
use crate::settings::Settings;
use memory::median_of_proxies;
use objects::Objects;
use proxies::Proxies;

const START_PLAIN: Figure = Figure {
    name: "start without sidecar, ms",
    decimals: 0,
};
const START_IDLE: Figure = Figure {
    name: "start with idle sidecar, ms",
    decimals: 0,
};
const START_MESHED: Figure = Figure {
    name: "start with sidecar, ms",
    decimals: 0,
};
const OFF: Figure = Figure {
    name: "off, ms",
    decimals: 0,
};
const BYPASS: Figure = Figure {
    name: "bypass, ms",
    decimals: 0,
};
const CONTROL_MEMORY: Figure = Figure {
    name: "control, MiB",
    decimals: 1,
};
const PROXY_MEMORY: Figure = Figure {
    name: "proxy, MiB",
    decimals: 1,
};
const FIGURES: &[Figure] = &[
    START_PLAIN,
    START_IDLE,
    START_MESHED,
    OFF,
    BYPASS,
    CONTROL_MEMORY,
    PROXY_MEMORY,
];

const FEW: &str = "10 Services, 100 pods";
const MANY: &str = "1,000 Services, 10,000 pods";
/// How many there are at first, in one namespace, and then in each of several.
const FEW_SERVICES: usize = 10;
const NAMESPACES: usize = 10;
const SERVICES_EACH: usize = 100;
const PODS_EACH_SERVICE: u32 = 10;
const SIMULATED_PROXIES: usize = 200;

pub(crate) async fn run(settings: &Settings, journal: &mut Journal) -> Result<()> {
    let cluster = cluster::alone().await;
    let mut table = Table::new("cluster", FIGURES);
    let mut objects = Objects::new(&cluster).await;
    objects.grow(1, FEW_SERVICES, PODS_EACH_SERVICE).await?;
    measure(settings, &cluster, FEW, &mut table).await?;
    say("making the objects of a large cluster");
    objects
        .grow(NAMESPACES, SERVICES_EACH, PODS_EACH_SERVICE)
        .await?;
    measure(settings, &cluster, MANY, &mut table).await?;
    journal.publish(&table, &targets(&table))
}

/// Everything, with as many objects in the API server as `size` says.
async fn measure(
    settings: &Settings,
    cluster: &Cluster,
    size: &'static str,
    table: &mut Table,
) -> Result<()> {
    let rounds = settings.rounds;
    let mut proxies = Proxies::connect(cluster, SIMULATED_PROXIES).await?;
    for _ in 0..rounds {
        table.add(size, BYPASS, proxies.bypass(cluster).await?);
        table.add(size, OFF, switch::off(settings, cluster).await?);
    }
    let pods = pods::Pods::new(cluster).await;
    for _ in 0..2 * rounds {
        table.add(size, START_PLAIN, pods.plain().await);
        table.add(size, START_IDLE, pods.idle().await);
        table.add(size, START_MESHED, pods.meshed().await);
    }
    table.add(size, CONTROL_MEMORY, memory::control(cluster).await?);
    table.add(size, PROXY_MEMORY, median_of_proxies(cluster).await?);
    Ok(())
}

fn targets(table: &Table) -> Vec<Target> {
    let of = |size, figure| table.median(size, figure);
    let added = |size| Some(of(size, START_MESHED)? - of(size, START_PLAIN)?);
    let by_us = |size| Some(of(size, START_MESHED)? - of(size, START_IDLE)?);
    let growth = || Some((of(MANY, PROXY_MEMORY)? / of(FEW, PROXY_MEMORY)? - 1.0).abs() * 100.0);
    let target = |what, value, limit| Target {
        what,
        value,
        bound: Bound::AtMost(limit),
    };
    vec![
        target("a sidecar adds to a pod's start, ms", added(FEW), 300.0),
        Target {
            what: "of which an idle sidecar would not, ms",
            value: by_us(FEW),
            bound: Bound::None,
        },
        target(
            "control's memory in the large cluster, MiB",
            of(MANY, CONTROL_MEMORY),
            150.0,
        ),
        target(
            "a proxy's memory there differs from the small one by, %",
            growth(),
            5.0,
        ),
        target(
            "off, until the first pod without a sidecar, ms",
            of(MANY, OFF),
            1000.0,
        ),
        target(
            "bypass at 200 proxies, until the last forwards, ms",
            of(MANY, BYPASS),
            2000.0,
        ),
    ]
}
