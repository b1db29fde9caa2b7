//! One TCP connection to a server that sends lines back. It is kept for as long
//! as it lasts, so that one which is dropped is counted once.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::counts::Outcome;

#[derive(Debug)]
pub(super) struct Conversation {
    address: String,
    stream: Option<BufReader<TcpStream>>,
    lines: u64,
}

impl Conversation {
    pub(super) fn with(address: String) -> Self {
        Self {
            address,
            stream: None,
            lines: 0,
        }
    }

    /// Sends a line that was not sent before, and expects it back. A line that
    /// comes back is counted as HTTP's 200 would be.
    pub(super) async fn line(&mut self, within: Duration) -> Outcome {
        let is_new = self.stream.is_none();
        let result = timeout(within, self.exchange()).await;
        let (how, error) = match result {
            Ok(Ok(())) => {
                return Outcome::Answered {
                    status: 200,
                    by: None,
                    said: String::new(),
                };
            }
            Ok(Err(error)) if is_new => ("connect", format!("{error:#}")),
            Ok(Err(error)) => ("broken", format!("{error:#}")),
            Err(_) => (
                "timeout",
                format!("the line did not come back within {within:?}"),
            ),
        };
        self.stream = None;
        Outcome::Failed { how, error }
    }

    async fn exchange(&mut self) -> Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let connected = TcpStream::connect(&self.address).await;
                none.insert(BufReader::new(connected.context("connecting")?))
            }
        };
        self.lines += 1;
        let sent = format!("line {}\n", self.lines);
        let written = stream.get_mut().write_all(sent.as_bytes()).await;
        written.context("sending a line")?;
        let mut received = String::new();
        let read = stream.read_line(&mut received).await;
        if read.context("reading a line")? == 0 {
            bail!("the server ended the connection");
        }
        if received != sent {
            bail!("the server sent {received:?} back for {sent:?}");
        }
        Ok(())
    }
}
