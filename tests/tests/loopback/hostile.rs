//! Bytes that nobody should send, at every port of a proxy.

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pair::Pair;

/// Beginnings of everything that is listened for, broken in all the usual ways.
fn hostile() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![
        b"\0".repeat(100_000),
        b"\xff".repeat(100_000),
        b"\r\n".repeat(50_000),
        b"A".repeat(200_000),
        [
            b"GET / HTTP/1.1\r\nhost: x\r\n".to_vec(),
            b"a: b\r\n".repeat(50_000),
        ]
        .concat(),
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551616\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx"
            .to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"\xff".repeat(50_000),
        ]
        .concat(),
        // A record that promises much and holds little, and one of another kind.
        vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff],
        [vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc], vec![0; 16_380]].concat(),
        [vec![22, 3, 1, 0, 1, 1], [22, 3, 1, 0, 1, 0].repeat(5_000)].concat(),
        vec![21, 3, 3, 0, 2, 2, 40],
    ];
    // Pseudo-random bytes behind each beginning, the same in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for beginning in [
        &b""[..],
        b"\x16\x03\x01",
        b"GET ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        for _ in 0..25 {
            let mut bytes = beginning.to_vec();
            for _ in 0..64 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_le_bytes());
            }
            all.push(bytes);
        }
    }
    all
}

/// Sends without waiting for an answer, then goes away.
async fn attack(address: SocketAddr) {
    for bytes in hostile() {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The other side may well have stopped listening.
        let _ = timeout(Duration::from_secs(5), stream.write_all(&bytes)).await;
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn no_bytes_at_any_port_stop_a_proxy() {
    for mode in MtlsMode::ALL {
        let app = apps::echo_http().await.unwrap();
        let pair = Pair::start(app.address, mode).await;
        let ports = [
            pair.server_port(),
            pair.dial(),
            pair.server.addresses.status,
            pair.server.addresses.admin,
        ];
        for port in ports {
            attack(port).await;
        }
        let entrance = match mode {
            MtlsMode::Disable => pair.server_port(),
            MtlsMode::Strict | MtlsMode::Permissive => pair.dial(),
        };
        assert_eq!(
            apps::get(entrance, "/").await.unwrap().status,
            200,
            "{mode}"
        );
        let ready = apps::get(pair.server.addresses.status, "/ready")
            .await
            .unwrap();
        assert_eq!(ready.status, 200);
    }
}

#[tokio::test]
async fn a_connection_to_the_proxys_own_port_does_not_loop() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start_with(app.address, |server| {
        // As in a pod: where connections go is for redirection to say, and
        // nothing redirected this one.
        server.inbound[0].forward = None;
    })
    .await;
    let answer = apps::talk(pair.server_port(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(
        answer.unwrap(),
        None,
        "it is reset, and does not call itself"
    );
}
