//! Conversations of lines over TCP.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Greets, where the server speaks first, and sends every line back until the
/// client ends the conversation or breaks it off.
pub(super) async fn converse(mut stream: TcpStream, server_first: bool, pod: &str) {
    let (reading, mut writing) = stream.split();
    if server_first {
        let greeting = format!("220 {pod} ready\r\n");
        if writing.write_all(greeting.as_bytes()).await.is_err() {
            return;
        }
    }
    let mut reading = BufReader::new(reading);
    let mut line = Vec::new();
    while let Ok(1..) = reading.read_until(b'\n', &mut line).await {
        if writing.write_all(&line).await.is_err() {
            return;
        }
        line.clear();
    }
}
