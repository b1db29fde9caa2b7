//! `bulkhead-proxy wait`: returns when the proxy in the same pod is ready. A
//! classic sidecar runs it as a postStart hook, which holds back the containers
//! after it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const PAUSE: Duration = Duration::from_millis(50);

/// Asks the status port until it says ready.
///
/// # Errors
/// It did not within the limit; the text says what it answered last.
pub async fn until_ready(status: SocketAddr, limit: Duration) -> Result<(), String> {
    let address = if status.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), status.port())
    } else {
        status
    };
    let deadline = Instant::now() + limit;
    loop {
        let answer = match timeout(Duration::from_secs(1), ask(address)).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(Ok(answer)) => answer.lines().last().unwrap_or_default().to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within a second".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(format!(
                "the proxy at {address} was not ready within {limit:?}: {answer}"
            ));
        }
        sleep(PAUSE).await;
    }
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.take(8 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
