//! The application, the proxy in front of it, and the control group that the proxy is in.

use std::convert::Infallible;
use std::fs::File;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_tests::apps::{self, App};
use bulkhead_tests::memory_group::MemoryGroup;
use bulkhead_tests::ports::free_address;
use bulkhead_tests::{config, metrics};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::attacks::Attack;
use crate::neighbours::{Neighbours, Outcomes};

/// How long anything may take until it is as it should be.
const WITHIN: Duration = Duration::from_secs(120);
/// The part of the limit from which connections wait, in hundredths (docs/limits.md).
const HOLD_FROM: u64 = 85;
/// The part below which it is again when all is over. A client's proxy keeps connections
/// to servers.
const GIVEN_BACK: u64 = 60;
const POLL: Duration = Duration::from_millis(50);
/// How often each neighbour is to be served: undisturbed, and during the attack.
const TIMES: u32 = 100;
const TIMES_ATTACKED: u32 = 200;

/// A proxy with a limit.
pub(crate) struct Ground {
    limit: u64,
    proxy: Running,
    /// After the program in it: a group is removed when it is empty.
    group: MemoryGroup,
    /// Whether the application goes on with what it has begun.
    goes_on: watch::Sender<bool>,
    _app: App,
    /// The server's, where the client's is attacked.
    _other: Option<Running>,
    _mesh: Mesh,
}

/// Whose proxy it is that is attacked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// That of the application: attackers speak plaintext to a PERMISSIVE port.
    Server,
    /// The attackers' own, with mutual TLS to another proxy, which has no limit.
    Client,
}

struct Running {
    process: Child,
    log: tempfile::NamedTempFile,
    /// Where the attackers and their neighbours dial.
    entry: SocketAddr,
    status: SocketAddr,
}

impl Ground {
    /// Starts all of it, and waits until the proxy is ready.
    pub(crate) async fn start(side: Side, limit: u64) -> Self {
        let most = rustix::process::getrlimit(Resource::Nofile).maximum;
        let descriptors = Rlimit {
            current: most,
            maximum: most,
        };
        rustix::process::setrlimit(Resource::Nofile, descriptors).expect("up to the hard limit");
        let mesh = Mesh::start().await.unwrap();
        let (goes_on, app_goes_on) = watch::channel(true);
        let app = app(app_goes_on).await;
        let group = MemoryGroup::new(limit).unwrap();
        let program = config::bulkhead_proxy().unwrap();
        let mut server = mesh.workload("shop", "cart").unwrap();
        server.inbound = vec![mesh::inbound(app.address)];
        let (other, settings) = match side {
            Side::Server => {
                server.mode = MtlsMode::Permissive;
                (None, server)
            }
            Side::Client => {
                let other = Running::start(server, Command::new(&program));
                let mut client = mesh.workload("web", "front").unwrap();
                let upstream = mesh::upstream(&mesh, "shop", "cart", &[other.entry]);
                client.outbound = vec![upstream.unwrap()];
                (Some(other), client)
            }
        };
        let proxy = Running::start(settings, group.command(&program));
        let mut ground = Self {
            limit,
            proxy,
            group,
            goes_on,
            _app: app,
            _other: other,
            _mesh: mesh,
        };
        ground
            .until("the proxy is ready", async |it: &Self| {
                apps::get(it.proxy.status, "/ready")
                    .await
                    .is_ok_and(|answer| answer.status == 200)
            })
            .await;
        ground
    }

    /// Attacks, and looks at what that does.
    pub(crate) async fn withstands(mut self, name: &str, attack: &Attack) {
        let mut neighbours = Neighbours::start(self.proxy.entry);
        let before = self.served(&mut neighbours, TIMES).await;

        let underway = attack.start(self.proxy.entry);
        let began = Instant::now();
        // Where connections wait in the kernel for there to be memory, not all come so far.
        while !underway.is_whole() && !self.holds().await && began.elapsed() < WITHIN {
            sleep(POLL).await;
        }
        let during = self.served(&mut neighbours, TIMES_ATTACKED).await;
        let begun = underway.begun();
        drop(underway);

        self.goes_on.send_replace(false);
        self.until("everything is given back", async |it: &Self| {
            it.used().await < it.limit / 100 * GIVEN_BACK
        })
        .await;
        let after = self.served(&mut neighbours, 1).await;

        let peak = self.group.peak().unwrap();
        say(&format!(
            "{name}, with {} KiB:\n    before: {before}\n    during: {during}, beside {begun} connections\n    after:  {after}\n    at most {} KiB were the group's, {} KiB resident",
            self.limit / 1024,
            peak / 1024,
            self.proxy.peak_resident() / 1024
        ));
        for outcomes in [&before, &during, &after] {
            assert_eq!(outcomes.broken, Vec::<String>::new());
        }
        assert_eq!(before.refused, 0, "undisturbed");
        assert!(peak < self.limit, "the group was at its limit");
        self.is_well("it is over");
    }

    /// Waits until each neighbour was served so often.
    async fn served(&mut self, neighbours: &mut Neighbours, times: u32) -> Outcomes {
        match neighbours.served(times, WITHIN).await {
            Ok(outcomes) => outcomes,
            Err(outcomes) => {
                self.is_well("neighbours are served");
                panic!(
                    "not every neighbour was served {times} times within {WITHIN:?}: {outcomes}; \
                     {} bytes are used; {:?}",
                    self.used().await,
                    outcomes.broken
                );
            }
        }
    }

    /// Sees to it that the proxy was not killed and has not ended.
    fn is_well(&mut self, when: &str) {
        let killed = self.group.killed().unwrap();
        assert_eq!(killed, 0, "{when}: the kernel killed the proxy");
        let ended = self.proxy.process.try_wait().unwrap();
        let said = || std::fs::read_to_string(self.proxy.log.path()).unwrap_or_default();
        assert_eq!(
            ended,
            None,
            "{when}: the proxy has ended; it said: {}",
            said()
        );
    }

    /// Whether connections wait for there to be memory.
    async fn holds(&self) -> bool {
        self.used().await >= self.limit / 100 * HOLD_FROM
    }

    /// Waits until something is so, for as long as the proxy lives.
    async fn until(&mut self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self).await {
            self.is_well(what);
            assert!(
                began.elapsed() < WITHIN,
                "{what}: not within {WITHIN:?}; {} bytes are used",
                self.used().await
            );
            sleep(POLL).await;
        }
    }

    /// What the proxy says that it uses, in bytes.
    async fn used(&self) -> u64 {
        let answer = apps::get(self.proxy.status, "/metrics").await;
        let text = answer.map(|answer| answer.body).unwrap_or_default();
        let used = metrics::sum_of(&text, "bulkhead_memory_used_bytes", &[]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bytes are a whole number"
        )]
        let used = used as u64;
        used
    }
}

impl Running {
    /// Starts a proxy of one listener.
    fn start(mut settings: SidecarConfig, mut command: Command) -> Self {
        let (entry, status) = (free_address().unwrap(), free_address().unwrap());
        for listener in &mut settings.inbound {
            listener.listen = entry;
        }
        for listener in &mut settings.outbound {
            listener.listen = entry;
        }
        settings.status_address = status;
        settings.admin_address = free_address().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = || -> File { log.as_file().try_clone().unwrap() };
        let process = command
            .envs(settings.to_env())
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn()
            .unwrap();
        Self {
            process,
            log,
            entry,
            status,
        }
    }

    /// The most that was ever resident of it, in bytes.
    fn peak_resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the numbers were, for whoever reads what the tests print.
#[expect(clippy::print_stdout, reason = "it is what is asked for")]
fn say(text: &str) {
    println!("{text}");
}

/// Serves `/`, 1 kB; `/endless`; and `/unread`, of which it reads nothing.
async fn app(goes_on: watch::Receiver<bool>) -> App {
    let serve = apps::serve(move |stream, _| {
        let goes_on = goes_on.clone();
        async move {
            let service = service_fn(|request| answer(request, goes_on.clone()));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away is no failure of the application's.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    serve.await.unwrap()
}

async fn answer(
    request: Request<Incoming>,
    mut goes_on: watch::Receiver<bool>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let body = match request.uri().path() {
        "/endless" => Endless.boxed(),
        "/unread" => {
            let _unread = request;
            // Whoever could say it being gone means the same.
            let _ = goes_on.wait_for(|goes_on| !goes_on).await;
            whole(&[])
        }
        _ => {
            // It may be one without an end.
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            whole(&[b'x'; 1024])
        }
    };
    Ok(Response::new(body))
}

fn whole(bytes: &'static [u8]) -> BoxBody<Bytes, hyper::Error> {
    let body = Full::new(Bytes::from_static(bytes));
    body.map_err(|never| match never {}).boxed()
}

/// A body that goes on for ever.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        const PIECE: &[u8] = &[b'e'; 16 * 1024];
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PIECE)))))
    }
}
