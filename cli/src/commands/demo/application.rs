//! Applications that know nothing of a mesh: plain HTTP/1.1, or HTTP over a TLS
//! of their own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use bulkhead_pki::serving::ServingCertificate;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// A request for this path is answered only when the application is told to.
pub(super) const SLOW: &str = "/slow";

/// A running application; dropping it stops it.
pub(super) struct Application {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    name: &'static str,
    requests: AtomicU64,
    /// How many requests for [`SLOW`] have come.
    slow: AtomicU64,
    release: watch::Sender<bool>,
}

impl Application {
    /// Answers each request with its name, the path and the body that came;
    /// over TLS where it has a certificate.
    pub(super) async fn start(
        name: &'static str,
        certificate: Option<&ServingCertificate>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .with_context(|| format!("binding a port for the application {name} failed"))?;
        let address = listener.local_addr()?;
        let tls = certificate
            .map(|certificate| certificate.server_config(["http/1.1"]))
            .transpose()?
            .map(TlsAcceptor::from);
        let state = Arc::new(State {
            name,
            requests: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            release: watch::Sender::new(false),
        });
        let served = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, state) = (tls.clone(), Arc::clone(&served));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self {
            address,
            state,
            task: task.abort_handle(),
        })
    }

    /// How many requests it has seen.
    pub(super) fn seen(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// How many requests for [`SLOW`] it has seen.
    pub(super) fn seen_slow(&self) -> u64 {
        self.state.slow.load(Ordering::Relaxed)
    }

    /// Has it answer the slow requests, from now on at once.
    pub(super) fn answer_slow(&self) {
        self.state.release.send_replace(true);
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S>(stream: S, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request| answer(&state, request));
    // A client that goes away is no failure of the application's.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    state: &State,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let (method, path) = (request.method(), request.uri().path());
    let line = format!("{}: {method} {path}\n", state.name);
    if path == SLOW {
        state.slow.fetch_add(1, Ordering::Relaxed);
        // The state outlives this, and the sender is in it.
        let _ = state.release.subscribe().wait_for(|release| *release).await;
    }
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let answer = [line.as_bytes(), &body[..]].concat();
    Ok(Response::new(Full::new(answer.into())))
}
