//! An API server whose nodes forward to the ports of pods, in this process, so that
//! time may be paused.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::cluster::Cluster;

/// How the API server of Kubernetes names what it speaks over a WebSocket.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// The channels of the one port that is forwarded.
const DATA: u8 = 0;
const ERRORS: u8 = 1;
const BUFFER: usize = 64 * 1024;

/// What listens on a port: it is given each connection.
type Program = Box<dyn Fn(DuplexStream) + Send + Sync>;
type Objects = Box<dyn Fn(&Uri) -> Value + Send + Sync>;

pub(crate) struct FakeCluster {
    objects: Objects,
    programs: HashMap<(String, u16), Program>,
}

impl FakeCluster {
    /// With what there is at each address; nothing can be changed.
    pub(crate) fn new(objects: impl Fn(&Uri) -> Value + Send + Sync + 'static) -> Self {
        Self {
            objects: Box::new(objects),
            programs: HashMap::new(),
        }
    }

    /// Has something listen on a port of a pod. Nothing else does.
    pub(crate) fn listens(
        mut self,
        pod: &str,
        port: u16,
        program: impl Fn(DuplexStream) + Send + Sync + 'static,
    ) -> Self {
        self.programs
            .insert((pod.to_owned(), port), Box::new(program));
        self
    }

    pub(crate) fn start(self) -> Cluster {
        let cluster = Arc::new(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = Arc::clone(&cluster);
            async move { cluster.connect(request).await }
        });
        Cluster {
            client: kube::Client::new(service, "default"),
            system_namespace: "bulkhead-system".to_owned(),
        }
    }

    /// One request over a connection of its own, which may become a WebSocket.
    async fn connect(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let (near, far) = duplex(BUFFER);
        let service = service_fn(move |request| {
            let answer = self.answer(request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let server = hyper::server::conn::http1::Builder::new();
        let server = server.serve_connection(TokioIo::new(far), service);
        tokio::spawn(server.with_upgrades());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await
    }

    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(path) = path.strip_suffix("/portforward") {
            let pod = path.rsplit('/').next().unwrap_or_default().to_owned();
            let query = request.uri().query().unwrap_or_default();
            let port = query.rsplit('=').next().and_then(|port| port.parse().ok());
            let port: u16 = port.expect("one port is asked for");
            let answer = switching(&request);
            tokio::spawn(Arc::clone(self).forward(request, pod, port));
            return answer;
        }
        let object = (self.objects)(request.uri());
        Response::new(Full::new(object.to_string().into()))
    }

    /// As the kubelet and the API server do: data and errors in channels, each of which
    /// begins with the port.
    async fn forward(self: Arc<Self>, request: Request<Incoming>, pod: String, port: u16) {
        let upgraded = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
        for channel in [DATA, ERRORS] {
            socket
                .send(framed(channel, &port.to_le_bytes()))
                .await
                .unwrap();
        }
        let Some(program) = self.programs.get(&(pod, port)) else {
            let refused = format!("dial tcp4 127.0.0.1:{port}: connect: connection refused");
            let refused = framed(ERRORS, refused.as_bytes());
            socket.send(refused).await.unwrap();
            // Whoever asked has seen it when it goes.
            while let Some(Ok(_)) = socket.next().await {}
            return;
        };
        let (mut ours, theirs) = duplex(BUFFER);
        program(theirs);
        let mut buffer = vec![0; BUFFER];
        loop {
            tokio::select! {
                read = ours.read(&mut buffer) => match read {
                    Ok(length @ 1..) => {
                        let data = framed(DATA, &buffer[..length]);
                        if socket.send(data).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => {
                        if ours.write_all(&data[1..]).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return,
                },
            }
        }
    }
}

fn switching(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let key = request.headers()[SEC_WEBSOCKET_KEY].as_bytes();
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key))
        .header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Full::default())
        .unwrap()
}

fn framed(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}
