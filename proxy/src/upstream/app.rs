//! The application, on the pod's own address.

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead_core::reason::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Connect;
use crate::failure::Failure;
use crate::socket;

/// The application is on the same host: a connection that takes longer will not
/// come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The application's listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct App(pub SocketAddr);

impl Connect for App {
    type Io = TcpStream;

    async fn connect(&self) -> Result<TcpStream, Failure> {
        connect(self.0, CONNECT_TIMEOUT).await
    }
}

/// Connects a socket and sets it up as all of ours are.
pub(super) async fn connect(address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    let failure = |problem: &dyn std::fmt::Display| {
        let detail = format!("connecting to {address}: {problem}");
        Failure::new(Reason::UpstreamConnectFailed, detail)
    };
    match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            socket::prepare(&stream);
            Ok(stream)
        }
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(failure(&format!("no answer within {within:?}"))),
    }
}
