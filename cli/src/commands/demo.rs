//! `bulkhead demo`: everything that Bulkhead does, shown on this machine.
//!
//! ```text
//!  steps ──▶ step ──▶ stage (webhook, CA, control, proxies, applications; all real)
//!              └────▶ Proof, or what was expected and seen ──▶ narrator ──▶ stdout
//! ```
//!
//! - `story`: what a step is, and what comes of it.
//! - `steps`: the steps, in their order; one file for each group.
//! - `stage`: what the steps share, started when the first one needs it;
//!   `manifests`: what control is told of it.
//! - Who acts on it: `reviewer` (the API server's part), `application`, `load`
//!   (visitors), `wiretap` (a stranger); and what they speak and read: `http`,
//!   `wire`.
//! - `narrator`: the same story for a terminal, a file or a program.
//! - `keep`: what a person can try while everything is left running.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_runtime::log;
use bulkhead_runtime::shutdown::Signals;
use clap::Args;
use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::config;
use narrator::{Json, Narrator, Text};
use stage::Stage;
use story::{Step, Told};

mod application;
mod http;
mod keep;
mod load;
mod manifests;
mod narrator;
mod reviewer;
mod stage;
mod steps;
mod story;
mod wire;
mod wiretap;

/// How long a step may take; each takes a second or two at most.
const STEP_LIMIT: Duration = Duration::from_secs(15);
/// How often the sign of life moves.
const TICK: Duration = Duration::from_millis(100);
/// How long work in hand may take when the demo ends.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Watch everything work, on this machine alone.
///
/// Runs the webhook, the certificate authority, control and several proxies in one
/// process, on free ports of loopback, and proves step by step what they do.
/// Needs no cluster and no root. The exit code is 0 only when every proof held.
#[derive(Debug, Args)]
pub struct Demo {
    /// Print one JSON object a line and nothing else: step, ok, detail, ms
    #[arg(long)]
    json: bool,
    /// Leave everything running afterwards, with addresses to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Show the logs of the programs, on stderr
    #[arg(long, short)]
    verbose: bool,
}

/// Somebody asked the demo to end before its end.
#[derive(Debug, thiserror::Error)]
#[error("stopped by {signal}; nothing is left behind")]
pub struct Interrupted {
    signal: &'static str,
}

impl Interrupted {
    /// What a shell makes of the signal: 128 and its number.
    pub fn exit_code(&self) -> u8 {
        if self.signal == "SIGTERM" { 143 } else { 130 }
    }
}

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.verbose {
            log::init("info", log::Format::Text)?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("starting the runtime failed")?;
        let mut signals = {
            let _inside = runtime.enter();
            Signals::catch().context("catching Ctrl-C failed")?
        };
        let directory = TempDir::with_prefix("bulkhead-demo-")
            .context("making a temporary directory failed; is the disk full?")?;
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = self.perform(directory.path()) => outcome,
                signal = signals.next() => Err(Interrupted { signal }.into()),
            }
        });
        // Whoever still writes to the directory must be done before it goes.
        runtime.shutdown_timeout(SHUTDOWN);
        let removed = directory.close();
        outcome?;
        removed.context("removing the temporary directory failed")
    }

    async fn perform(&self, directory: &Path) -> anyhow::Result<()> {
        let mut narrator = self.narrator();
        let mut stage = Stage::new(directory);
        let told = tell(steps::ALL, &mut stage, narrator.as_mut())
            .await
            // Not as an error of output: whoever stops reading has no proof, and
            // the exit code must not say so.
            .map_err(|error| anyhow::anyhow!("the story was not told to its end: {error:#}"))?;
        if self.keep {
            narrator.aside(&keep::what_to_try(&mut stage).await?)?;
            std::future::pending::<()>().await;
        }
        verdict(&told)
    }

    fn narrator(&self) -> Box<dyn Narrator> {
        let stdout = std::io::stdout();
        if self.json {
            return Box::new(Json::new(stdout));
        }
        let is_terminal = stdout.is_terminal();
        let text = Text::new(stdout)
            .with_colour(is_terminal && !config::is_colour_unwanted())
            // A log on the same terminal would be torn apart.
            .with_activity(is_terminal && !self.verbose);
        Box::new(text)
    }
}

/// Goes through the steps. One that fails does not stop the others.
async fn tell(
    steps: &[Step],
    stage: &mut Stage,
    narrator: &mut dyn Narrator,
) -> anyhow::Result<Vec<Told>> {
    narrator.opening(steps)?;
    let mut told = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        narrator.begin(index + 1, steps.len(), step)?;
        told.push(run(step, stage, narrator).await?);
        narrator.end(&told[index])?;
    }
    narrator.closing(&told)?;
    Ok(told)
}

/// Runs one step, with signs of life.
async fn run(step: &Step, stage: &mut Stage, narrator: &mut dyn Narrator) -> anyhow::Result<Told> {
    let progress = stage.progress.start();
    let began = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut proving = std::pin::pin!(timeout(STEP_LIMIT, (step.prove)(stage)));
    let outcome = loop {
        tokio::select! {
            outcome = &mut proving => break outcome,
            _ = ticks.tick() => narrator.tick(began.elapsed(), &progress.borrow())?,
        }
    };
    let outcome = outcome.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "expected the step to be done within {STEP_LIMIT:?}; it was not"
        ))
    });
    Ok(Told::new(step.name, outcome, began.elapsed()))
}

fn verdict(told: &[Told]) -> anyhow::Result<()> {
    match told.iter().filter(|told| !told.ok).count() {
        0 => Ok(()),
        failed => Err(anyhow::anyhow!(
            "{failed} of {} steps did not hold",
            told.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::story::{Proof, expect};

    const STEPS: &[Step] = &[
        Step {
            name: "wrong",
            title: "Something does not hold",
            why: "It happens.",
            prove: |_| Box::pin(async { expect(false, "four", 5).map(|()| Proof::new("never")) }),
        },
        Step {
            name: "right",
            title: "Something holds",
            why: "It should.",
            prove: |_| Box::pin(async { Ok(Proof::new("two and two")) }),
        },
    ];

    async fn told(narrator: &mut dyn Narrator) -> Vec<Told> {
        let directory = TempDir::new().unwrap();
        let mut stage = Stage::new(directory.path());
        tell(STEPS, &mut stage, narrator).await.unwrap()
    }

    #[tokio::test]
    async fn a_proof_that_fails_stops_no_other_step_and_fails_the_command() {
        let mut output = Vec::new();
        let told = told(&mut Text::new(&mut output)).await;
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("expected four; saw 5"), "{output}");
        assert!(output.contains("two and two"), "{output}");
        let error = verdict(&told).unwrap_err().to_string();
        assert_eq!(error, "1 of 2 steps did not hold");
        assert!(verdict(&told[1..]).is_ok());
    }

    #[tokio::test]
    async fn programs_get_an_object_a_line_with_what_was_expected_and_seen() {
        let mut output = Vec::new();
        told(&mut Json::new(&mut output)).await;
        let output = String::from_utf8(output).unwrap();
        let lines: Vec<serde_json::Value> = output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["step"], "wrong");
        assert_eq!(lines[0]["ok"], false);
        assert_eq!(lines[0]["detail"], "expected four; saw 5");
        assert_eq!(lines[1]["ok"], true);
        assert!(lines[1]["ms"].is_u64());
    }
}
