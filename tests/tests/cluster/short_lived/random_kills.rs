//! Whatever is there ends or hangs at a random moment, while certificates are
//! renewed and the root is rotated. Only who calls and who answers is let live.
//!
//! The order of what is done follows from the seed, which a failed test prints
//! with all that was done; CONTRIBUTING.md says how to run it for an hour.

use std::time::Duration;

use bulkhead_tests::cluster::apps::{App, server};
use bulkhead_tests::cluster::commands::{Running, kubectl};
use bulkhead_tests::cluster::processes::{self, Process};
use bulkhead_tests::cluster::{Cluster, SOON, SYSTEM_NAMESPACE, alone, is_ready, until};
use bulkhead_tests::config;
use bulkhead_tests::namespace::Namespace;
use fastrand::Rng;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::{Instant, sleep};

use super::{Authority, SIDECAR, STRICT, none_failed, sidecar, start_web, under_load};
use crate::programs::{self, ALL, CA, pods_of};

/// So long is killed at a time, until it is looked whether all settles.
const ROUND: Duration = Duration::from_secs(40);
/// From one accident to the next, in seconds.
const PAUSE: std::ops::Range<u64> = 1..6;
/// For how long something hangs, in seconds.
const HANG: std::ops::Range<u64> = 2..9;
/// How often a container may have ended until only its pod is deleted: the kubelet
/// waits longer each time, in the end longer than certificates live.
const RESTARTS: i32 = 2;
/// How long the CA is left alone once it is back. Certificates of two minutes have
/// 48 seconds left when they are renewed at the latest, and a sidecar asks again
/// after 12 seconds at the latest.
const REST: Duration = Duration::from_secs(15);

/// What is done to somebody.
#[derive(Clone, Copy, Debug)]
enum Accident {
    /// One process of a program ends, without a word.
    Kill(&'static str),
    /// One pod of a program goes, without a word.
    Delete(&'static str),
    /// All pods of a program go.
    DeleteAll(&'static str),
    /// One process of a program hangs for so many seconds.
    Hang(&'static str, u64),
    /// The API server hangs for so many seconds.
    HangApiServer(u64),
    /// A sidecar ends, of neither who calls nor who answers.
    KillSidecar,
    /// It hangs for so many seconds.
    HangSidecar(u64),
    /// Pods of an application go, and others come.
    Replace,
    /// Somebody wants another root.
    Rotate,
    /// Somebody wants the root before.
    Undo,
}

impl Accident {
    fn draw(random: &mut Rng) -> Self {
        let program = random.choice(ALL).copied().unwrap_or(CA);
        let seconds = random.u64(HANG);
        match random.u8(0..20) {
            0..4 => Self::Kill(program),
            4..8 => Self::Delete(program),
            8..10 => Self::DeleteAll(program),
            10..12 => Self::Hang(program, seconds),
            12..14 => Self::HangApiServer(seconds),
            14 => Self::KillSidecar,
            15 => Self::HangSidecar(seconds),
            16..18 => Self::Replace,
            18 => Self::Rotate,
            _ => Self::Undo,
        }
    }

    fn is_of_the_ca(self) -> bool {
        matches!(
            self,
            Self::Kill(CA)
                | Self::Delete(CA)
                | Self::DeleteAll(CA)
                | Self::Hang(CA, _)
                | Self::HangApiServer(_)
        )
    }
}

/// Where it all happens.
struct World<'a> {
    cluster: &'a Cluster,
    /// An application that neither calls nor answers, of two pods.
    bystander: App<'a>,
    authority: Authority,
    /// Who it is that something happens to.
    victims: Rng,
    began: Instant,
    /// Since when every replica of the CA was there, as far as was seen.
    ca_back: Option<Instant>,
}

#[tokio::test]
async fn whatever_is_killed_no_request_fails_and_everything_settles() {
    let (asked_for, seed) = (config::chaos_time(), config::chaos_seed());
    say(&format!(
        "the seed is {seed}: BULKHEAD_CHAOS_SEED={seed} does the same again"
    ));
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = start_web(&namespace).await;
    let loads = under_load(&namespace, &web).await;
    let mut random = Rng::with_seed(seed);
    let mut world = World {
        cluster: &cluster,
        bystander: server("bystander").replicas(2).start(&namespace).await,
        authority: Authority::of(&cluster),
        victims: random.fork(),
        began: Instant::now(),
        ca_back: Some(Instant::now()),
    };
    let mut rounds = 0;
    while rounds == 0 || world.began.elapsed() < asked_for {
        rounds += 1;
        world.suffers(Accident::Rotate).await;
        let until = Instant::now() + ROUND.min(asked_for);
        while Instant::now() < until {
            let accident = Accident::draw(&mut random);
            world.suffers(accident).await;
            sleep(Duration::from_secs(random.u64(PAUSE))).await;
        }
        world.settles(&namespace, rounds).await;
        none_failed(&loads).await;
    }
}

impl World<'_> {
    /// One accident, to its end.
    async fn suffers(&mut self, accident: Accident) {
        if accident.is_of_the_ca() {
            self.ca_has_rested().await;
            self.ca_back = None;
        }
        say(&format!(
            "{:5.1} s  {accident:?}",
            self.began.elapsed().as_secs_f64()
        ));
        match accident {
            Accident::Kill(program) => {
                if let Some(pod) = self.one_of(program).await {
                    kill(&pod, program).await;
                }
            }
            Accident::Delete(program) => {
                if let Some(pod) = self.one_of(program).await {
                    delete(SYSTEM_NAMESPACE, &["pod", &pod.name_any()]).await;
                }
            }
            Accident::DeleteAll(program) => {
                let label = format!("app.kubernetes.io/name={program}");
                delete(SYSTEM_NAMESPACE, &["pod", "-l", &label]).await;
            }
            Accident::Hang(program, seconds) => {
                let pod = self.one_of(program).await;
                let found = pod.map(|pod| processes::of_pod(&pod, program));
                hang(found.into_iter().flatten(), seconds).await;
            }
            Accident::HangApiServer(seconds) => {
                hang([processes::of_node("kube-apiserver")], seconds).await;
            }
            Accident::KillSidecar => {
                if let Some(pod) = self.bystanders_pod().await {
                    kill(&pod, SIDECAR).await;
                }
            }
            Accident::HangSidecar(seconds) => {
                let pod = self.bystanders_pod().await;
                hang(pod.as_ref().and_then(sidecar), seconds).await;
            }
            Accident::Replace => {
                if let Some(pod) = self.bystanders_pod().await {
                    delete(&place(&pod), &["pod", &pod.name_any()]).await;
                }
            }
            Accident::Rotate => order(&[]).await,
            Accident::Undo => order(&["--undo"]).await,
        }
    }

    /// A pod of a program, whichever; none where there is none just now.
    async fn one_of(&mut self, program: &str) -> Option<Pod> {
        let mut pods = pods_of(self.cluster, program).await;
        pods.sort_by_key(kube::ResourceExt::name_any);
        self.victims.choice(pods)
    }

    async fn bystanders_pod(&mut self) -> Option<Pod> {
        let pods = self.bystander.pods().await;
        self.victims.choice(pods)
    }

    /// Waits until every replica of the CA has been there for a while.
    async fn ca_has_rested(&mut self) {
        if self.ca_back.is_none() {
            until("the CA is back", async || {
                let pods = pods_of(self.cluster, CA).await;
                (pods.len() > 1 && pods.iter().all(is_ready)).then_some(())
            })
            .await;
        }
        let back = *self.ca_back.get_or_insert_with(Instant::now);
        tokio::time::sleep_until(back + REST).await;
    }

    /// Waits until nothing is left of what happened, and a new pod is part of the
    /// mesh.
    async fn settles(&mut self, namespace: &Namespace, round: u32) {
        programs::are_ready(self.cluster, ALL).await;
        programs::injects(self.cluster).await;
        self.bystander.ready().await;
        self.authority.settles().await;
        self.ca_back = Some(Instant::now());
        let name = format!("later-{round}");
        let later = server(&name).start(namespace).await;
        delete(namespace.name(), &["deployment", &name]).await;
        until("its pods are gone", async || {
            later.pods().await.is_empty().then_some(())
        })
        .await;
        say(&format!(
            "{:5.1} s  all is settled",
            self.began.elapsed().as_secs_f64()
        ));
    }
}

/// Ends a program of a pod, or the pod where that would wait too long for its next
/// start.
async fn kill(pod: &Pod, program: &str) {
    let status = pod.status.as_ref();
    let sidecars = status.and_then(|status| status.init_container_statuses.as_ref());
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let all = sidecars.into_iter().chain(containers).flatten();
    if all.map(|container| container.restart_count).max() < Some(RESTARTS) {
        let found = processes::of_pod(pod, program);
        found.iter().for_each(Process::kill);
    } else {
        delete(&place(pod), &["pod", &pod.name_any()]).await;
    }
}

fn place(pod: &Pod) -> String {
    pod.namespace().unwrap_or_default()
}

/// Holds processes for a while.
async fn hang(processes: impl IntoIterator<Item = Process>, seconds: u64) {
    let stopped: Vec<_> = processes.into_iter().map(Process::stop).collect();
    sleep(Duration::from_secs(seconds)).await;
    drop(stopped);
}

/// Deletes without waiting for anybody, as a node that is lost does.
async fn delete(namespace: &str, what: &[&str]) {
    let how = ["--force", "--grace-period=0", "--wait=false"];
    let place = ["--namespace", namespace, "--ignore-not-found"];
    kubectl(&[&["delete"], what, &place, &how].concat()).await;
}

/// Wants a root of the CA. There may be nothing to undo.
async fn order(arguments: &[&str]) {
    let arguments = [&["ca", "rotate-root", "--no-wait"], arguments].concat();
    let ended = Running::start(&arguments).ended(SOON).await;
    say(&format!("         {}{}", ended.stdout, ended.stderr));
}

#[expect(
    clippy::print_stdout,
    reason = "it is shown where the test fails, and says what happened"
)]
fn say(line: &str) {
    println!("{}", line.trim_end());
}
