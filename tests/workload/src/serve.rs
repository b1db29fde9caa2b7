//! Listeners of several protocols in one process.
//!
//! - [`answer`]: what HTTP requests are answered with, gRPC health among them.
//! - [`lines`]: protocols of lines over TCP, in which the server speaks first or
//!   second.

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use futures::future::join_all;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::output;
use answer::About;
pub(crate) use answer::headers;

mod answer;
mod lines;

/// How long open connections may take to finish: less than the 30 s after which
/// a kubelet kills.
const GRACE: Duration = Duration::from_secs(25);

/// Which listeners there are.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// HTTP/1.1, on this port.
    #[arg(long, value_name = "PORT")]
    pub http: Vec<u16>,
    /// HTTP/2 without TLS, with the client's prior knowledge.
    #[arg(long, value_name = "PORT")]
    pub h2c: Vec<u16>,
    /// gRPC with its health service and nothing else.
    #[arg(long, value_name = "PORT")]
    pub grpc_health: Vec<u16>,
    /// Sends every line back.
    #[arg(long, value_name = "PORT")]
    pub tcp_echo: Vec<u16>,
    /// Greets before the client has said anything, as SMTP and MySQL do, and then
    /// sends every line back.
    #[arg(long, value_name = "PORT")]
    pub server_first: Vec<u16>,
    /// Be unhealthy for so many seconds first, as a slow starter is.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub healthy_after: f64,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
    Lines { server_first: bool },
}

/// Listens until SIGTERM or SIGINT; then takes no more connections, finishes
/// what is in hand, and returns.
///
/// # Errors
/// A port cannot be listened on, or none was named.
pub async fn serve(options: &Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let server = Server::start(options).await?;
    for (protocol, address) in &server.addresses {
        output::line(&serde_json::json!({ "listening": address, "protocol": protocol }))?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.finish().await
}

/// Listeners that are open.
#[derive(Debug)]
pub struct Server {
    /// What is spoken where; port 0 was replaced by the one that was given.
    pub addresses: Vec<(String, SocketAddr)>,
    ending: watch::Sender<bool>,
    listeners: Vec<tokio::task::JoinHandle<JoinSet<()>>>,
}

impl Server {
    /// # Errors
    /// A port cannot be listened on, or none was named.
    pub async fn start(options: &Options) -> Result<Self> {
        let healthy_from = Instant::now() + Duration::from_secs_f64(options.healthy_after);
        let about = Arc::new(About::this_pod(healthy_from)?);
        let (ending, ended) = watch::channel(false);
        let mut server = Self {
            addresses: Vec::new(),
            ending,
            listeners: Vec::new(),
        };
        for (protocol, port) in wanted(options) {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .await
                .with_context(|| format!("listening on port {port}"))?;
            let address = listener
                .local_addr()
                .context("reading a socket's address")?;
            server.addresses.push((format!("{protocol:?}"), address));
            let accepting = accept(listener, protocol, Arc::clone(&about), ended.clone());
            server.listeners.push(tokio::spawn(accepting));
        }
        ensure!(
            !server.listeners.is_empty(),
            "no port was named; --help lists the protocols"
        );
        Ok(server)
    }

    /// Takes no more connections and waits for the open ones.
    ///
    /// # Errors
    /// They take longer than a kubelet waits.
    pub async fn finish(self) -> Result<()> {
        self.ending.send_replace(true);
        let connections = join_all(self.listeners).await;
        let finished = timeout(GRACE, async {
            for mut connections in connections.into_iter().flatten() {
                while connections.join_next().await.is_some() {}
            }
        });
        finished
            .await
            .with_context(|| format!("connections were still open {GRACE:?} after SIGTERM"))
    }
}

fn wanted(options: &Options) -> impl Iterator<Item = (Protocol, u16)> {
    let lists = [
        (Protocol::Http1, &options.http),
        (Protocol::Http2, &options.h2c),
        (Protocol::Http2, &options.grpc_health),
        (
            Protocol::Lines {
                server_first: false,
            },
            &options.tcp_echo,
        ),
        (
            Protocol::Lines { server_first: true },
            &options.server_first,
        ),
    ];
    lists
        .into_iter()
        .flat_map(|(protocol, ports)| ports.iter().map(move |port| (protocol, *port)))
}

/// Accepts until it is told to end; returns the connections that are still open.
async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    about: Arc<About>,
    ending: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut ended = pin!(wait_for(ending.clone()));
    loop {
        tokio::select! {
            // Both errors mean that this connection is gone, or the process ends.
            accepted = listener.accept() => if let Ok((stream, peer)) = accepted {
                connections.spawn(connection(stream, peer, protocol, Arc::clone(&about), ending.clone()));
            },
            Some(_) = connections.join_next() => {}
            () = &mut ended => return connections,
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    protocol: Protocol,
    about: Arc<About>,
    ending: watch::Receiver<bool>,
) {
    let ended = wait_for(ending);
    let pod = about.pod().to_owned();
    let respond = service_fn(move |request| answer::answer(Arc::clone(&about), peer, request));
    match protocol {
        Protocol::Http1 => {
            let mut server = http1::Builder::new();
            let served = server
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), respond);
            gracefully(served, ended, http1::Connection::graceful_shutdown).await;
        }
        Protocol::Http2 => {
            let mut server = http2::Builder::new(TokioExecutor::new());
            let served = server
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), respond);
            gracefully(served, ended, http2::Connection::graceful_shutdown).await;
        }
        // A conversation of lines has no end of its own that one could wait for.
        Protocol::Lines { server_first } => tokio::select! {
            () = lines::converse(stream, server_first, &pod) => {}
            () = ended => {}
        },
    }
}

async fn wait_for(mut ending: watch::Receiver<bool>) {
    // It fails where the server is gone, which is an end as well.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// Serves a connection, and lets it finish what it has begun when `ended` comes.
/// A client that breaks off is the client's affair.
async fn gracefully<C: Future>(
    served: C,
    ended: impl Future<Output = ()>,
    shut_down: fn(Pin<&mut C>),
) {
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => {}
        () = ended => {
            shut_down(served.as_mut());
            let _ = served.await;
        }
    }
}
