//! What to measure, and with what: the command line, which `scripts/bench`
//! writes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// What this process is to do.
pub(crate) enum Command {
    Run(Box<Settings>),
    /// Print how many signatures this core verifies and makes, for so long.
    RawSignatures(Duration),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bench {
    Webhook,
    Ca,
    Proxy,
    Cluster,
    /// How much the proxy executes, rather than how fast.
    Instructions,
}

/// How instructions are counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instructions {
    pub(crate) valgrind: PathBuf,
    /// The counts to compare with.
    pub(crate) baseline: PathBuf,
    /// Whether to write them instead.
    pub(crate) write: bool,
}

/// What a run is told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) benches: Vec<Bench>,
    /// The directory of the programs under test.
    pub(crate) programs: PathBuf,
    pub(crate) instructions: Instructions,
    /// Where the lines of results go.
    pub(crate) results: PathBuf,
    pub(crate) nginx: Option<PathBuf>,
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) haproxy: Option<PathBuf>,
    /// Whether there is a kube-apiserver to ask.
    pub(crate) api_server: bool,
    /// How often each figure is measured; the median counts.
    pub(crate) rounds: usize,
    /// How long each measurement takes.
    pub(crate) window: Duration,
    /// How long load is applied before that.
    pub(crate) warm_up: Duration,
}

impl Settings {
    /// The proxy's program.
    pub(crate) fn proxy(&self) -> PathBuf {
        self.programs.join("bulkhead-proxy")
    }
}

impl Command {
    pub(crate) fn read(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut settings = Settings {
            benches: Vec::new(),
            programs: PathBuf::new(),
            instructions: Instructions::default(),
            results: PathBuf::new(),
            nginx: None,
            envoy: None,
            haproxy: None,
            api_server: false,
            rounds: 5,
            window: Duration::from_millis(1500),
            warm_up: Duration::from_millis(300),
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "webhook" => settings.benches.push(Bench::Webhook),
                "ca" => settings.benches.push(Bench::Ca),
                "proxy" => settings.benches.push(Bench::Proxy),
                "instructions" => settings.benches.push(Bench::Instructions),
                "--valgrind" => settings.instructions.valgrind = value()?.into(),
                "--baseline" => settings.instructions.baseline = value()?.into(),
                "--write" => settings.instructions.write = true,
                "cluster" => settings.benches.push(Bench::Cluster),
                "--programs" => settings.programs = value()?.into(),
                "--results" => settings.results = value()?.into(),
                "--nginx" => settings.nginx = Some(value()?.into()),
                "--envoy" => settings.envoy = Some(value()?.into()),
                "--haproxy" => settings.haproxy = Some(value()?.into()),
                "--api-server" => settings.api_server = true,
                "--quick" => {
                    settings.rounds = 1;
                    settings.window = Duration::from_millis(800);
                }
                "--raw-signatures" => {
                    return Ok(Self::RawSignatures(Duration::from_millis(
                        value()?.parse()?,
                    )));
                }
                // Cargo says so to every benchmark.
                "--bench" => {}
                other => bail!("{other:?} means nothing here; run ./scripts/bench"),
            }
        }
        Ok(Self::Run(Box::new(settings)))
    }
}
