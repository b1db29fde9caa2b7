//! Clients that want to hurt: meanwhile another is served, and afterwards nothing
//! is left of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use bulkhead_ca::app::Dependencies;
use bulkhead_ca::limits::Limits;
use bulkhead_pki::serving;
use bulkhead_runtime::descriptors;
use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Ca, SERVER_NAME, connect, metric, request, token_for_cart, until};

/// Where those come from who want to hurt, and the others.
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
const HONEST: Ipv4Addr = Ipv4Addr::LOCALHOST;

const SECOND: Duration = Duration::from_secs(1);
/// No busy machine needs as long.
const LONG: Duration = Duration::from_secs(600);

/// Limits that are reached soon.
fn few() -> Limits {
    Limits {
        connections_waiting: 64,
        strangers: 16,
        guests: 8,
        leaving: 4,
        connection_patience: LONG,
        call_patience: LONG,
        handshake: LONG,
        stranger: LONG,
        call: LONG,
        ..Limits::default()
    }
}

/// A CA, and what there is of it while nobody is connected.
struct Target {
    ca: Ca,
    tasks: usize,
}

impl Target {
    async fn start(limits: Limits) -> Self {
        let given = Dependencies {
            limits,
            ..Dependencies::default()
        };
        let ca = Ca::start_given(|_| {}, given).await;
        // Whatever is there only after a first call is there now.
        let target = Self { ca, tasks: 0 };
        target.assert_serves().await;
        until(|| target.is_quiet()).await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        Self { tasks, ..target }
    }

    /// Another's call, which has to wait for nobody's time limit.
    async fn assert_serves(&self) {
        let token = self.ca.token(&token_for_cart());
        let mut client = self.ca.try_client(HONEST).await.unwrap();
        client.call(Some(&token), request(None).1).await.unwrap();
    }

    fn is_quiet(&self) -> bool {
        let gauges = ["bulkhead_ca_connections", "bulkhead_ca_queue_waiting"];
        gauges.into_iter().all(|gauge| metric(&self.ca, gauge) == 0)
    }

    /// Waits until everything is as it was before anybody came.
    async fn assert_nothing_is_left(&self) {
        until(|| self.is_quiet()).await;
        until(|| Handle::current().metrics().num_alive_tasks() <= self.tasks).await;
    }

    async fn tcp(&self) -> TcpStream {
        connect(HOSTILE, self.ca.app.address()).await.unwrap()
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let roots = self.ca.app.trust_bundle();
        let config = serving::client_config(roots.roots(), ["h2"]).unwrap();
        let name = SERVER_NAME.try_into().unwrap();
        let connecting = TlsConnector::from(config).connect(name, self.tcp().await);
        connecting.await.unwrap()
    }
}

/// HTTP/2 by hand (RFC 9113, 4.1 and 6).
mod frame {
    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const UNKNOWN: u8 = 0xbb;
    pub(super) const END_HEADERS: u8 = 4;
    /// A POST to `/` on host `a`, in HPACK's static table (RFC 7541, A).
    pub(super) const REQUEST: &[u8] = &[0x83, 0x87, 0x84, 0x41, 1, b'a'];

    pub(super) fn of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// What a client begins with.
    pub(super) fn beginning() -> Vec<u8> {
        [PREFACE, &of(SETTINGS, 0, 0, &[])].concat()
    }
}

/// Writes the same again and again, and reads and forgets what comes, until the
/// server has enough of it.
async fn flood(stream: TlsStream<TcpStream>, chunk: impl Fn(u32) -> Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sink =
        tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let write = async {
        let mut number = 0;
        loop {
            let chunks: Vec<u8> = (number..number + 64).flat_map(&chunk).collect();
            number += 64;
            if writer.write_all(&chunks).await.is_err() {
                return;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), write).await;
    ended.expect("the server has enough of it");
    drop(writer);
    let _ = sink.await;
}

#[tokio::test]
async fn floods_of_frames_are_cut_off_and_others_are_served_meanwhile() {
    let limits = Limits {
        unproved_bytes: 64 * 1024,
        ..few()
    };
    let target = Target::start(limits).await;
    let stream_of = |number: u32| 2 * number + 1;
    let open = |number| {
        frame::of(
            frame::HEADERS,
            frame::END_HEADERS,
            stream_of(number),
            frame::REQUEST,
        )
    };
    // A literal that is not indexed, with a name of one byte and a long value.
    let literal = [&[0, 1, b'x', 0x7f, 0xa1, 6][..], &[b'y'; 928]].concat();
    type Flood<'a> = (&'a str, Vec<u8>, Box<dyn Fn(u32) -> Vec<u8> + 'a>);
    let floods: Vec<Flood<'_>> = vec![
        (
            "pings",
            vec![],
            Box::new(|_| frame::of(frame::PING, 0, 0, &[0; 8])),
        ),
        (
            "settings",
            vec![],
            Box::new(|_| frame::of(frame::SETTINGS, 0, 0, &[])),
        ),
        (
            "unknown frames",
            vec![],
            Box::new(|_| frame::of(frame::UNKNOWN, 0, 0, &[])),
        ),
        (
            "priorities",
            vec![],
            Box::new(|_| frame::of(frame::PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        ),
        (
            "windows",
            open(0),
            Box::new(|_| frame::of(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ),
        (
            "streams that are reset at once",
            vec![],
            Box::new(|number| {
                let reset = frame::of(frame::RST_STREAM, 0, stream_of(number), &[0, 0, 0, 8]);
                [open(number), reset].concat()
            }),
        ),
        (
            "headers that do not end",
            frame::of(frame::HEADERS, 0, 1, frame::REQUEST),
            Box::new(|_| frame::of(frame::CONTINUATION, 0, 1, &literal)),
        ),
        (
            "headers of nothing that do not end",
            frame::of(frame::HEADERS, 0, 1, frame::REQUEST),
            Box::new(|_| frame::of(frame::CONTINUATION, 0, 1, &[])),
        ),
        (
            "a message of nothing that does not end",
            open(0),
            Box::new(|_| frame::of(frame::DATA, 0, 1, &[])),
        ),
    ];
    for (name, first, chunk) in floods {
        let mut stream = target.tls().await;
        stream.write_all(&frame::beginning()).await.unwrap();
        stream.write_all(&first).await.unwrap();
        tokio::join!(flood(stream, chunk), target.assert_serves());
        let left = tokio::time::timeout(60 * SECOND, target.assert_nothing_is_left());
        left.await
            .unwrap_or_else(|_| panic!("{name} leave something behind"));
    }
}

#[tokio::test]
async fn whoever_is_slow_keeps_nobody_waiting_and_is_closed() {
    let limits = Limits {
        handshake: SECOND,
        stranger: SECOND,
        call: SECOND,
        ..few()
    };
    let target = Target::start(limits).await;
    let half_a_request = frame::of(frame::HEADERS, 0, 1, &frame::REQUEST[..3]);
    let without_message = frame::of(frame::HEADERS, frame::END_HEADERS, 1, frame::REQUEST);
    for (what, after_tls) in [
        ("nothing", None),
        ("TLS and no more", Some(vec![])),
        (
            "half a request",
            Some([frame::beginning(), half_a_request].concat()),
        ),
        (
            "no message",
            Some([frame::beginning(), without_message].concat()),
        ),
    ] {
        let mut held = Vec::new();
        match after_tls {
            None => {
                // Half of them begin a handshake: the head of a ClientHello.
                for number in 0..48 {
                    let mut stream = target.tcp().await;
                    let begun: &[u8] = if number % 2 == 0 {
                        &[]
                    } else {
                        &[0x16, 3, 1, 2]
                    };
                    stream.write_all(begun).await.unwrap();
                    held.push(tokio::spawn(until_closed(stream)));
                }
            }
            Some(bytes) => {
                // As many as one address has places for.
                for _ in 0..8 {
                    let mut stream = target.tls().await;
                    stream.write_all(&bytes).await.unwrap();
                    held.push(tokio::spawn(until_closed(stream)));
                }
            }
        }
        target.assert_serves().await;
        let closed = tokio::time::timeout(60 * SECOND, join_all(held)).await;
        closed.unwrap_or_else(|_| panic!("whoever sends {what} is not closed"));
        target.assert_nothing_is_left().await;
    }
}

/// Reads until the server closes the connection.
async fn until_closed(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut sink = Vec::new();
    // An error is a close too: a reset.
    let _ = stream.read_to_end(&mut sink).await;
}

#[tokio::test]
async fn thousands_of_connections_that_say_nothing_keep_nobody_waiting() {
    let descriptors = usize::try_from(descriptors::raise_limit()).unwrap_or(usize::MAX);
    let target = Target::start(Limits::default()).await;
    let mut idle = Vec::new();
    for _ in 0..(descriptors / 8).min(3000) {
        idle.push(target.tcp().await);
    }
    target.assert_serves().await;
    drop(idle);
    target.assert_nothing_is_left().await;
}

#[tokio::test]
async fn connections_for_which_there_is_no_room_are_closed_and_another_is_served() {
    let limits = Limits {
        connections_waiting: 4,
        strangers: 4,
        guests: 1,
        leaving: 1,
        ..few()
    };
    let target = Target::start(limits).await;
    let most = limits.connections();
    assert_eq!(metric(&target.ca, "bulkhead_ca_connections_limit"), most);
    let mut idle = Vec::new();
    for _ in 0..3 * most {
        idle.push(target.tcp().await);
    }
    until(|| metric(&target.ca, "bulkhead_ca_connections_refused_total") > 0).await;
    // Whoever comes to a line that is full takes the place of the last one of the
    // address with the longest line: it is served although all are there.
    target.assert_serves().await;
    drop(idle);
    target.assert_nothing_is_left().await;
}

#[tokio::test]
async fn ten_thousand_requests_on_one_connection_keep_nobody_waiting() {
    let target = Target::start(few()).await;
    let greedy = target.ca.try_client(HOSTILE).await.unwrap();
    let mut named = token_for_cart();
    named.service_account = "greedy".to_owned();
    let (token, wanted) = (target.ca.token(&named), request(None).1);
    let calls = (0..10_000).map(|_| {
        let (mut client, token, wanted) = (greedy.clone(), token.clone(), wanted.clone());
        async move { client.call(Some(&token), wanted).await }
    });
    let others = async {
        until(|| metric(&target.ca, "bulkhead_ca_certificates_issued_total") > 10).await;
        for _ in 0..3 {
            target.assert_serves().await;
        }
    };
    tokio::select! {
        answers = join_all(calls) => {
            let first = answers.into_iter().find_map(Result::err);
            panic!("the greedy one was answered before the others; first refused: {first:?}");
        }
        () = others => {}
    }
    drop(greedy);
    target.assert_nothing_is_left().await;
}

#[tokio::test]
async fn one_who_takes_connections_without_end_takes_none_of_the_others() {
    let target = Target::start(few()).await;
    let quiet = target.ca.token(&token_for_cart());
    let mut client = target.ca.try_client(HONEST).await.unwrap();
    client.call(Some(&quiet), request(None).1).await.unwrap();
    let mut named = token_for_cart();
    named.service_account = "greedy".to_owned();
    named.pod = named.pod.map(|pod| bulkhead_ca::authenticate::Pod {
        uid: "greedy".to_owned(),
        ..pod
    });
    let greedy = target.ca.token(&named);
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(stop_after_a_call(&target, &greedy).await);
    }
    let limits = few();
    let open = || metric(&target.ca, "bulkhead_ca_connections");
    until(|| open() <= limits.guests + limits.leaving).await;
    // On the connection that it has had all the time.
    client.call(Some(&quiet), request(None).1).await.unwrap();
    drop((held, client));
    target.assert_nothing_is_left().await;
}

/// A connection that had a certificate and then neither reads nor writes.
async fn stop_after_a_call(target: &Target, token: &str) -> impl Sized + use<> {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let io = TokioIo::new(target.tls().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    let mut connection = Box::pin(connection);
    let message = bulkhead_proto::generated::IstioCertificateRequest::from(request(None).1);
    let call = hyper::Request::post(format!(
        "https://{SERVER_NAME}/istio.v1.auth.IstioCertificateService/CreateCertificate"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .header("authorization", format!("Bearer {token}"))
    .body(http_body_util::Full::new(crate::support::grpc(&message)))
    .unwrap();
    let answered = async {
        use http_body_util::BodyExt as _;
        let answer = sender.send_request(call).await.unwrap();
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    };
    tokio::select! {
        () = answered => {}
        ended = &mut connection => panic!("the connection ended: {ended:?}"),
    }
    (sender, connection)
}
