//! Work at a fixed rate, or as fast as it is done.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};

use crate::process::Process;

/// Whoever asks for one piece of work after the other.
pub(crate) trait Caller: 'static {
    async fn call(&mut self) -> Result<()>;
}

/// How much was done, and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    pub(crate) per_second: f64,
    /// CPU seconds of each process, for one call.
    pub(crate) cpu: [f64; 2],
    /// Resident memory of the largest process, with all connections open.
    pub(crate) resident_mib: f64,
}

impl Throughput {
    /// CPU seconds of all processes for 10,000 calls.
    pub(crate) fn cpu_per_10k(&self) -> f64 {
        self.cpu.iter().sum::<f64>() * 10_000.0
    }
}

/// Each caller calls again as soon as it was answered.
pub(crate) async fn maximum<C: Caller>(
    callers: Vec<C>,
    warm_up: Duration,
    window: Duration,
    processes: &[&Process],
) -> Result<Throughput> {
    let done = Rc::new(Cell::new(0_u32));
    let stop = Rc::new(Cell::new(false));
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        let (done, stop) = (Rc::clone(&done), Rc::clone(&stop));
        tasks.spawn_local(async move {
            while !stop.get() {
                caller.call().await?;
                done.set(done.get() + 1);
            }
            // Open until all have stopped, so that memory can be looked at.
            anyhow::Ok(caller)
        });
    }
    unless_failed(&mut tasks, sleep(warm_up)).await?;
    let before = (done.get(), Instant::now(), cpu(processes));
    unless_failed(&mut tasks, sleep(window)).await?;
    let (calls, took, after) = (done.get() - before.0, before.1.elapsed(), cpu(processes));
    stop.set(true);
    let callers: Result<Vec<_>> = tasks.join_all().await.into_iter().collect();
    let resident_mib = largest(processes);
    drop(callers?);
    let calls = f64::from(calls);
    Ok(Throughput {
        per_second: calls / took.as_secs_f64(),
        cpu: [0, 1].map(|index| (after[index] - before.2[index]) / calls),
        resident_mib,
    })
}

/// Waits for `time`, unless a caller gives up before.
async fn unless_failed<T: 'static>(
    tasks: &mut JoinSet<Result<T>>,
    time: impl Future<Output = ()>,
) -> Result<()> {
    tokio::select! {
        () = time => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended?.context("a caller was not answered")?;
            Ok(())
        }
    }
}

/// The resident memory of the largest of some processes, in MiB.
pub(crate) fn largest(processes: &[&Process]) -> f64 {
    let resident = processes.iter().map(|process| process.resident_mib());
    resident.fold(0.0, f64::max)
}

fn cpu(processes: &[&Process]) -> [f64; 2] {
    [0, 1].map(|index| {
        let process = processes.get(index);
        process.map_or(0.0, |process| process.cpu_seconds())
    })
}

fn held_up(processes: &[&Process]) -> f64 {
    processes
        .iter()
        .map(|process| process.held_up_seconds())
        .sum()
}

/// How long calls at a fixed rate took.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    /// In microseconds, the shortest first.
    sorted: Vec<f64>,
    /// CPU seconds of all processes for 10,000 calls.
    pub(crate) cpu_per_10k: f64,
    /// The seconds of each second for which a process could have run and something
    /// else had its core.
    pub(crate) held_up: f64,
}

impl Latency {
    /// In microseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }
}

/// Calls at `rate` a second, whether or not the ones before were answered.
///
/// A call's time counts from when it was due, so that one which had to wait for
/// a free caller, because the ones before took long, shows it (no coordinated
/// omission). Between calls this thread looks for answers without sleeping:
/// timers are a millisecond wide, which is more than what is measured.
pub(crate) async fn at_rate<C: Caller>(
    callers: Vec<C>,
    rate: u32,
    warm_up: Duration,
    window: Duration,
    processes: &[&Process],
) -> Result<Latency> {
    let queue = Rc::new(Queue::default());
    let took = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let counts_from = Instant::now() + warm_up;
    for mut caller in callers {
        let (queue, took) = (Rc::clone(&queue), Rc::clone(&took));
        tasks.spawn_local(async move {
            while let Some(due) = queue.next().await {
                caller.call().await?;
                if due >= counts_from {
                    let time = due.elapsed().as_secs_f64() * 1_000_000.0;
                    took.borrow_mut().push(time);
                }
            }
            anyhow::Ok(())
        });
    }
    pace(&queue, rate, counts_from).await;
    let before = (cpu(processes), held_up(processes));
    pace(&queue, rate, counts_from + window).await;
    let after = (cpu(processes), held_up(processes));
    queue.close();
    for ended in tasks.join_all().await {
        ended.context("a caller was not answered")?;
    }
    let mut sorted = took.take();
    sorted.sort_unstable_by(f64::total_cmp);
    let spent: f64 = [0, 1]
        .map(|index| after.0[index] - before.0[index])
        .iter()
        .sum();
    Ok(Latency {
        cpu_per_10k: spent / (f64::from(rate) * window.as_secs_f64()) * 10_000.0,
        held_up: (after.1 - before.1) / window.as_secs_f64(),
        sorted,
    })
}

async fn pace(queue: &Queue, rate: u32, until: Instant) {
    let apart = Duration::from_secs(1) / rate;
    let mut due = Instant::now();
    while due < until {
        if due <= Instant::now() {
            queue.push(due);
            due += apart;
        }
        yield_now().await;
    }
}

/// Calls that are due.
#[derive(Default)]
struct Queue {
    due: RefCell<VecDeque<Instant>>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Queue {
    fn push(&self, due: Instant) {
        self.due.borrow_mut().push_back(due);
        self.changed.notify_one();
    }

    /// Lets the callers end once nothing is due any more.
    fn close(&self) {
        self.closed.set(true);
        self.changed.notify_waiters();
    }

    async fn next(&self) -> Option<Instant> {
        loop {
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return Some(due);
            }
            if self.closed.get() {
                return None;
            }
            self.changed.notified().await;
        }
    }
}
