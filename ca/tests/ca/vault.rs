//! Whatever else listens where a Vault should be, or breaks off: what Vault itself
//! answers is tested with a real one (`tests/tests/apiserver/upstreams.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bulkhead_ca::upstream::vault::{Vault, VaultAuthentication, VaultSettings};
use bulkhead_ca::upstream::{Reason, Upstream as _, UpstreamError};
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::key::PrivateKey;
use bulkhead_runtime::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::DAY;

const TOKEN: &str = "hvs.CAESIJ7xQ0u3mT9wYk2n";

/// Answers each request with these bytes, and closes the connection.
async fn listens(answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            // What is not read when the connection is closed would reset it.
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                stream.read_buf(&mut request).await.unwrap();
            }
            // Whoever has read enough is gone.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

/// What comes of it, and how often was asked.
async fn signs(answer: String) -> (UpstreamError, usize) {
    let (address, asked) = listens(answer).await;
    let directory = tempfile::tempdir().unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let settings = VaultSettings {
        url: format!("http://{address}").parse().unwrap(),
        ca_file: None,
        namespace: None,
        mount: "mesh".to_owned(),
        role: None,
        authentication: VaultAuthentication::TokenFile(token_file),
    };
    let vault = Vault::new(settings, None, default_trust_domain(), Clock::system());
    let key = PrivateKey::generate().unwrap();
    let domain = default_trust_domain();
    let error = vault.sign_intermediate(&key, &domain, DAY).await;
    let error = error.unwrap_err();
    assert!(!error.to_string().contains(TOKEN), "{error}");
    (error, asked.load(Ordering::SeqCst))
}

fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_refusal_is_told_in_its_words_and_not_asked_for_again() {
    let (error, asked) = signs(answer(403, r#"{"errors": ["permission denied"]}"#)).await;
    assert_eq!((error.reason(), asked), (Reason::Refused, 1));
    assert!(error.to_string().contains("(permission denied)"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_no_vaults_is_called_that() {
    let (error, asked) = signs(answer(200, "<html>Welcome</html>")).await;
    assert_eq!((error.reason(), asked), (Reason::Unusable, 1));
    assert!(
        error.to_string().contains("is a Vault at that address?"),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_tried_again_and_an_answer_without_end_is_not_read() {
    let endless = format!("HTTP/1.1 200 X\r\n\r\n{}", " ".repeat(2 * 1024 * 1024));
    for broken in [
        String::new(),
        "HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{".to_owned(),
        endless,
    ] {
        let (error, asked) = signs(broken).await;
        assert_eq!((error.reason(), asked), (Reason::Unreachable, 4), "{error}");
        let said = error.to_string();
        assert!(
            said.starts_with("asking Vault at http://127.0.0.1:"),
            "{said}"
        );
    }
}
