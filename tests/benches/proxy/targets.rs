//! Ours beside the others, and beside what it is meant to be.

use super::{
    ADDED_P50, ADDED_P99, BULK, CPU_MAXIMUM, CPU_RATE, GRPC, HANDSHAKE, IDLE, IDLE_CLIENT,
    IDLE_SERVER, LOADED, MAXIMUM, NEW, RESUMED, SIZE, START, envoy, haproxy, nginx, ours,
};
use crate::results::Bound::{AtLeast, AtMost};
use crate::results::{Bound, Figure, Table, Target};

/// A figure of ours, divided by theirs.
type Ratio = (&'static str, Figure, &'static str, &'static str, Bound);

const RATIOS: &[Ratio] = &[
    (
        "requests/s, ours L7 / nginx L7",
        MAXIMUM,
        ours::L7,
        nginx::L7,
        AtLeast(1.4),
    ),
    (
        "requests/s, ours L7 / haproxy L7",
        MAXIMUM,
        ours::L7,
        haproxy::L7,
        AtLeast(1.4),
    ),
    (
        "requests/s, ours L7 / Envoy L7",
        MAXIMUM,
        ours::L7,
        envoy::L7,
        AtLeast(3.6),
    ),
    (
        "requests/s, ours L4 / nginx L4",
        MAXIMUM,
        ours::L4,
        nginx::L4,
        AtLeast(1.45),
    ),
    (
        "requests/s, ours L4 / Envoy L4",
        MAXIMUM,
        ours::L4,
        envoy::L4,
        AtLeast(1.75),
    ),
    (
        "added p50 µs, ours L7 / nginx L7",
        ADDED_P50,
        ours::L7,
        nginx::L7,
        AtMost(0.75),
    ),
    (
        "added p99 µs, ours L7 / nginx L7",
        ADDED_P99,
        ours::L7,
        nginx::L7,
        AtMost(0.75),
    ),
    (
        "added p50 µs, ours L7 / Envoy L7",
        ADDED_P50,
        ours::L7,
        envoy::L7,
        AtMost(0.4),
    ),
    (
        "added p99 µs, ours L7 / Envoy L7",
        ADDED_P99,
        ours::L7,
        envoy::L7,
        AtMost(0.4),
    ),
    (
        "added p50 µs, ours L4 / nginx L4",
        ADDED_P50,
        ours::L4,
        nginx::L4,
        AtMost(0.7),
    ),
    (
        "added p99 µs, ours L4 / nginx L4",
        ADDED_P99,
        ours::L4,
        nginx::L4,
        AtMost(0.7),
    ),
    (
        "CPU s/10k at 2,000/s, ours L7 / nginx L7",
        CPU_RATE,
        ours::L7,
        nginx::L7,
        AtMost(0.8),
    ),
    (
        "CPU s/10k at max, ours L7 / nginx L7",
        CPU_MAXIMUM,
        ours::L7,
        nginx::L7,
        AtMost(0.8),
    ),
    (
        "CPU s/10k at 2,000/s, ours L4 / nginx L4",
        CPU_RATE,
        ours::L4,
        nginx::L4,
        AtMost(0.7),
    ),
    (
        "CPU s/10k at max, ours L4 / nginx L4",
        CPU_MAXIMUM,
        ours::L4,
        nginx::L4,
        AtMost(0.7),
    ),
    (
        "new conns/s, ours L7 / haproxy L7",
        NEW,
        ours::L7,
        haproxy::L7,
        AtLeast(1.0),
    ),
    (
        "new conns/s, ours L4 / nginx L4",
        NEW,
        ours::L4,
        nginx::L4,
        AtLeast(5.0),
    ),
    (
        "bulk MiB/s, ours L7 / nginx L7",
        BULK,
        ours::L7,
        nginx::L7,
        AtLeast(1.5),
    ),
    (
        "bulk MiB/s, ours L4 / nginx L4",
        BULK,
        ours::L4,
        nginx::L4,
        AtLeast(2.0),
    ),
    (
        "gRPC calls/s, ours L7 / nginx L7",
        GRPC,
        ours::L7,
        nginx::L7,
        AtLeast(1.3),
    ),
    (
        "gRPC calls/s, ours L7 / Envoy L7",
        GRPC,
        ours::L7,
        envoy::L7,
        AtLeast(1.3),
    ),
];

const FIGURES: &[(&str, Figure, &str, Bound)] = &[
    (
        "server CPU ms/handshake, ours L7",
        HANDSHAKE,
        ours::L7,
        AtMost(0.45),
    ),
    (
        "server CPU ms/resumed, ours L7",
        RESUMED,
        ours::L7,
        AtMost(0.15),
    ),
    ("RSS idle, ours L7", IDLE, ours::L7, AtMost(6.0)),
    ("RSS idle, ours L4", IDLE, ours::L4, AtMost(5.0)),
    ("RSS loaded, ours L7", LOADED, ours::L7, AtMost(12.0)),
    ("RSS loaded, ours L4", LOADED, ours::L4, AtMost(10.0)),
    (
        "KiB/idle conn, client, ours L7",
        IDLE_CLIENT,
        ours::L7,
        AtMost(5.0),
    ),
    (
        "KiB/idle conn, server, ours L7",
        IDLE_SERVER,
        ours::L7,
        AtMost(5.0),
    ),
    (
        "KiB/idle conn, client, ours L4",
        IDLE_CLIENT,
        ours::L4,
        AtMost(5.0),
    ),
    (
        "KiB/idle conn, server, ours L4",
        IDLE_SERVER,
        ours::L4,
        AtMost(5.0),
    ),
    ("exec to ready ms, ours L7", START, ours::L7, AtMost(20.0)),
    ("stripped MiB, ours L7", SIZE, ours::L7, AtMost(8.0)),
];

pub(super) fn all(table: &Table) -> Vec<Target> {
    let ratios = RATIOS.iter().map(|&(what, figure, ours, theirs, bound)| {
        let both = table.median(ours, figure).zip(table.median(theirs, figure));
        Target {
            what,
            value: both.map(|(ours, theirs)| ours / theirs),
            bound,
        }
    });
    let figures = FIGURES.iter().map(|&(what, figure, ours, bound)| Target {
        what,
        value: table.median(ours, figure),
        bound,
    });
    ratios.chain(figures).collect()
}
