//! What a replica says of itself on its admin port.

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::support::{Ca, request, token_for_cart};

async fn get(ca: &Ca, host: &str, path: &str) -> (StatusCode, String) {
    let address = ca.app.admin_address().unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", host);
    let request = request.body(http_body_util::Empty::<hyper::body::Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

async fn with_admin() -> Ca {
    Ca::start_with(|config| config.admin_listen = Some("127.0.0.1:0".parse().unwrap())).await
}

#[tokio::test]
async fn a_replica_says_how_much_it_issued_and_why_it_refused() {
    let ca = with_admin().await;
    let token = ca.token(&token_for_cart());
    ca.call(Some(&token), request(None).1).await.unwrap();
    ca.call(Some(&token), request(None).1).await.unwrap();
    ca.call(None, request(None).1).await.unwrap_err();
    let (status, body) = get(&ca, "localhost", "/status").await;
    assert_eq!(status, StatusCode::OK);
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(said["issued_total"], 2);
    assert!(said["issued_per_second"].as_f64().unwrap() > 0.0, "{said}");
    assert_eq!(said["refused"], json!({"token_missing": 1}));
    assert_eq!(said["queue"], json!({"length": 0, "waiting": []}));
    assert!(said["since"].as_u64().unwrap() > 0);
    assert!(!body.contains(&token));
}

#[tokio::test]
async fn the_admin_port_is_for_programs_of_its_host() {
    let ca = with_admin().await;
    let (status, _) = get(&ca, "attacker.example", "/status").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, help) = get(&ca, "127.0.0.1:15000", "/").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(help.contains("/status"), "{help}");
}
