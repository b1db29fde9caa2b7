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
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// A running application; dropping it stops it.
pub(super) struct Application {
    pub(super) address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: AbortHandle,
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
        let requests = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, counted) = (tls.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, name, counted).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, name, counted).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self {
            address,
            requests,
            task: task.abort_handle(),
        })
    }

    /// How many requests it has seen.
    pub(super) fn seen(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S>(stream: S, name: &'static str, requests: Arc<AtomicU64>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        requests.fetch_add(1, Ordering::Relaxed);
        answer(name, request)
    });
    // A client that goes away is no failure of the application's.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    name: &str,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{name}: {} {}\n", request.method(), request.uri().path());
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let answer = [line.as_bytes(), &body[..]].concat();
    Ok(Response::new(Full::new(answer.into())))
}
