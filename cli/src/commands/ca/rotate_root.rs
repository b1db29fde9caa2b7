//! `bulkhead ca rotate-root`: another root, with no restart and no failed call.

use std::io::{BufRead as _, IsTerminal as _, Stdout, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bulkhead_crds::certificate_authority::{CertificateAuthority, NAME};
use bulkhead_runtime::clock::Clock;
use clap::Args;
use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::authority::object::{self, Order};
use crate::authority::progress::{self, Screen, write_missing};
use crate::authority::rotation::{Decision, Goal, Known, Obstacle, Progress, Step, Wish, decide};
use crate::cluster::{Cluster, ClusterArgs, block_on};
use crate::emergency::banner;
use crate::error::Ended;
use crate::moment;

/// How often it is looked at how long something takes already.
const TICK: Duration = Duration::from_secs(1);
/// How long after an order what the CA says may be of before it.
const SETTLES: Duration = Duration::from_secs(5);
/// How much longer proxies may take to renew: they spread it over ten minutes.
const RENEWING: Duration = Duration::from_secs(600);
/// How often an order is decided on anew because somebody else changed the object.
const ATTEMPTS: usize = 5;

/// Replace the mesh's root, and follow that to its end.
///
/// The new root is published; it signs when every proxy holds it; the old one is
/// retired when nothing needs it. No workload restarts and no call fails. The
/// command starts it or, where one is under way, joins it: it can be interrupted
/// and typed again, here or elsewhere. Where proxies do not get the new root, it
/// names them and ends.
///
/// Exit codes: 0 done (with --no-wait: started); 1 failed; 2 wrong usage; 3 it
/// waits for proxies that lack the new root; 130 interrupted, and it goes on.
#[derive(Debug, Args)]
pub(super) struct RotateRoot {
    /// Go back to the root before, which is possible until it is retired
    #[arg(long)]
    undo: bool,
    /// Go on though proxies lack the new root: those named then fail every call
    /// until they have it
    #[arg(long)]
    force: bool,
    /// With --force: do not ask
    #[arg(long, requires = "force")]
    yes: bool,
    /// Start it, and do not follow it
    #[arg(long, conflicts_with = "force")]
    no_wait: bool,
    /// How long proxies may take to get the new root
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = moment::parse_span)]
    patience: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Exit codes, as the help names them.
const WAITS: u8 = 3;
const INTERRUPTED: u8 = 130;

impl RotateRoot {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.rotate())
    }

    async fn rotate(self) -> anyhow::Result<()> {
        let cluster = self.cluster.connect().await?;
        banner::show(&cluster, Clock::system().now()).await?;
        let wish = if self.undo { Wish::Undo } else { Wish::Rotate };
        let (goal, is_new) = start(&cluster, wish).await?;
        let what = match (goal.is_undo, is_new) {
            (false, true) => "A rotation begins",
            (false, false) => "A rotation is under way",
            (true, true) => "The rotation is undone",
            (true, false) => "A rotation is being undone",
        };
        let mut out = std::io::stdout();
        writeln!(out, "{what}: root {} is to sign.", goal.root)?;
        if self.no_wait {
            writeln!(
                out,
                "It goes on by itself. To follow it: bulkhead ca rotate-root"
            )?;
            return Ok(());
        }
        let is_terminal = out.is_terminal();
        let mut follower = Follower {
            cluster: &cluster,
            goal,
            patience: self.patience,
            may_force: self.force,
            is_sure: self.yes,
            // Whoever joins has seen who is missing.
            is_waited_for: !is_new,
            ordered: is_new.then(Instant::now),
            waits_since: Instant::now(),
            behind: 0,
            screen: Screen::new(out, is_terminal),
        };
        let followed = tokio::select! {
            followed = follower.follow() => followed,
            _ = tokio::signal::ctrl_c() => Err(interrupted(goal)),
        };
        follower.screen.clear()?;
        followed
    }
}

fn interrupted(goal: Goal) -> anyhow::Error {
    let undo = if goal.is_undo {
        ""
    } else {
        "; to go back: bulkhead ca rotate-root --undo"
    };
    Ended {
        code: INTERRUPTED,
        message: format!(
            "following ended, and the rotation to root {} goes on. To follow it again: bulkhead \
             ca rotate-root{undo}",
            goal.root
        ),
    }
    .into()
}

/// Asks for the rotation, where it is not under way; says which root is to sign,
/// and whether it was asked for now.
async fn start(cluster: &Cluster, wish: Wish) -> anyhow::Result<(Goal, bool)> {
    for _ in 0..ATTEMPTS {
        let authority = object::read(cluster).await?;
        match decide(&authority, wish) {
            Decision::Follow(goal) => return Ok((goal, false)),
            Decision::Impossible(why) => bail!("{why}"),
            Decision::Order(goal) => {
                let order = Order::of(&authority, goal.root);
                if object::order(cluster, &authority, order).await? {
                    return Ok((goal, true));
                }
            }
        }
    }
    bail!("somebody else changes certificateauthority/{NAME} all the time; nothing was started")
}

/// What follows a rotation to its end.
struct Follower<'a> {
    cluster: &'a Cluster,
    goal: Goal,
    patience: Duration,
    may_force: bool,
    is_sure: bool,
    /// Whether the wait for proxies is over from the start.
    is_waited_for: bool,
    /// When this command asked for it, if it did.
    ordered: Option<Instant>,
    waits_since: Instant,
    /// How many kept the step from being over when last looked at.
    behind: u32,
    screen: Screen<Stdout>,
}

impl Follower<'_> {
    async fn follow(&mut self) -> anyhow::Result<()> {
        let changes = watch_object(object::api(self.cluster), NAME).default_backoff();
        let mut changes = std::pin::pin!(changes);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut latest: Option<CertificateAuthority> = None;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(Some(authority))) => latest = Some(authority),
                    Some(Ok(None)) => bail!(
                        "certificateauthority/{NAME} was deleted; the CA makes it again, and \
                         `bulkhead ca status` says where the rotation stands"
                    ),
                    // The watch begins again by itself, after a pause.
                    Some(Err(_)) => continue,
                    None => bail!("following certificateauthority/{NAME} ended"),
                },
                _ = ticks.tick() => {}
            }
            if let Some(authority) = &latest
                && self.look(authority).await?
            {
                return Ok(());
            }
        }
    }

    /// Shows how far it is, and says whether that is the end.
    async fn look(&mut self, authority: &CertificateAuthority) -> anyhow::Result<bool> {
        let progress = match Progress::of(authority, self.goal, Clock::system().now()) {
            Ok(progress) => progress,
            Err(Obstacle::Blocked { .. })
                if self.ordered.is_some_and(|at| at.elapsed() < SETTLES) =>
            {
                return Ok(false);
            }
            Err(Obstacle::Blocked { why, proxies }) => {
                self.stuck(authority, &proxies, &why).await?;
                return Ok(false);
            }
            Err(Obstacle::Superseded(root)) => bail!(
                "somebody wants root {root} to sign instead of root {}; `bulkhead ca status` shows \
                 what goes on",
                self.goal.root
            ),
            Err(Obstacle::Gone) => bail!(
                "root {} was retired before it signed: somebody undid the rotation",
                self.goal.root
            ),
        };
        self.screen.show(&progress)?;
        let before = std::mem::replace(&mut self.behind, progress.behind());
        if self.behind == 0 || (self.behind < before && progress.step == Step::Renewing) {
            self.waits_since = Instant::now();
        } else if let Some(why) = self.impatience(&progress) {
            self.stuck(authority, &progress.proxies, why).await?;
        }
        if progress.step == Step::Done {
            let mut out = std::io::stdout();
            writeln!(
                out,
                "Done: root {} signs, and it is the only one.",
                self.goal.root
            )?;
        }
        Ok(progress.step == Step::Done)
    }

    /// Why it is not waited any longer for those that keep a step from being over.
    fn impatience(&self, progress: &Progress) -> Option<&'static str> {
        let waited = self.waits_since.elapsed();
        let may_force = self.is_waited_for && self.may_force;
        match progress.step {
            Step::Publishing if !progress.is_forced && (may_force || waited >= self.patience) => {
                Some("not every proxy holds the new root")
            }
            Step::Renewing if may_force || waited >= self.patience + RENEWING => {
                Some("not every proxy has a certificate below the new root")
            }
            _ => None,
        }
    }

    /// Names who would be cut off, and goes on without them if that is wanted.
    async fn stuck(
        &mut self,
        authority: &CertificateAuthority,
        proxies: &Known,
        why: &str,
    ) -> anyhow::Result<()> {
        self.screen.clear()?;
        let mut out = std::io::stdout();
        let root = self.goal.root;
        writeln!(out, "It does not go on: {why}.")?;
        match proxies {
            Known::Nothing => writeln!(
                out,
                "Nobody knows which proxies hold root {root}: any of them may be cut off. See that \
                 control runs."
            )?,
            Known::Said { .. } if proxies.lacking() > 0 => {
                writeln!(
                    out,
                    "If root {root} signed now, calls with {} would fail until they have it:",
                    progress::proxies(proxies.lacking())
                )?;
                write_missing(&mut out, proxies)?;
            }
            Known::Said { .. } if proxies.not_renewed() > 0 => {
                writeln!(
                    out,
                    "If the other root left now, calls with {} would fail until they renew:",
                    progress::proxies(proxies.not_renewed())
                )?;
                write_missing(&mut out, proxies)?;
            }
            Known::Said { .. } => {}
        }
        if !self.may_force {
            return Err(waits(self.goal));
        }
        if !self.is_sure && !is_confirmed(&mut out, root)? {
            bail!("nothing was forced; the rotation goes on when the proxies hold root {root}");
        }
        self.may_force = false;
        let order = Order {
            force: true,
            ..Order::of(authority, root)
        };
        if !object::order(self.cluster, authority, order).await? {
            // The object has changed: what it is now is looked at first.
            self.may_force = true;
            return Ok(());
        }
        let signs = authority
            .status
            .as_ref()
            .and_then(|status| status.root_generation);
        if signs == Some(root) {
            writeln!(
                out,
                "Forced: the other root leaves when all certificates below it have expired."
            )?;
        } else {
            writeln!(out, "Forced: root {root} is to sign without them.")?;
        }
        Ok(())
    }
}

fn waits(goal: Goal) -> anyhow::Error {
    let undo = if goal.is_undo {
        ""
    } else {
        "; to go back: bulkhead ca rotate-root --undo"
    };
    Ended {
        code: WAITS,
        message: format!(
            "the rotation to root {} waits, and goes on by itself once they hold it. A pod that \
             never gets it can be restarted. To follow it again: bulkhead ca rotate-root; to go on \
             without them: bulkhead ca rotate-root --force{undo}",
            goal.root
        ),
    }
    .into()
}

fn is_confirmed(out: &mut impl Write, root: u32) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("--force asks before it does that, and there is no terminal to ask on: add --yes");
    }
    write!(out, "Go on with root {root} all the same? Type yes: ")?;
    out.flush()?;
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    read.context("reading the answer failed")?;
    Ok(answer.trim() == "yes")
}
