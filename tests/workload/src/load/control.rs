//! `GET /counts` says what became of the requests so far, `POST /stop` ends the
//! load. The probes of a pod may use `/counts` as well.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Tally;

pub(super) struct Control {
    pub(super) address: SocketAddr,
    end: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Control {
    /// Lets whoever said stop have the answer.
    pub(super) async fn finish(self) {
        // Both fail only where the task has ended before.
        let _ = self.end.send(());
        let _ = self.served.await;
    }
}

pub(super) async fn listen(port: u16, tally: Arc<Tally>) -> Result<Control> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("listening on port {port} for GET /counts"))?;
    let address = listener.local_addr();
    let address = address.context("reading a socket's address")?;
    let (end, ended) = oneshot::channel();
    let served = tokio::spawn(serve(listener, tally, ended));
    Ok(Control {
        address,
        end,
        served,
    })
}

async fn serve(listener: TcpListener, tally: Arc<Tally>, mut ended: oneshot::Receiver<()>) {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ended => break,
        };
        let Ok((stream, _)) = accepted else { continue };
        let tally = Arc::clone(&tally);
        let respond = service_fn(move |request| {
            let answer = answer(&tally, &request);
            async { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), respond);
        tokio::spawn(connections.watch(served));
    }
    connections.shutdown().await;
}

fn answer(tally: &Tally, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let status = match (request.method(), request.uri().path()) {
        (&Method::GET, "/counts") => StatusCode::OK,
        (&Method::POST, "/stop") => {
            tally.stop.notify_one();
            StatusCode::OK
        }
        _ => StatusCode::NOT_FOUND,
    };
    let counts = serde_json::to_vec(&*tally.counts()).expect("counts are numbers and strings");
    let mut response = Response::new(Full::new(Bytes::from(counts)));
    *response.status_mut() = status;
    response
}
