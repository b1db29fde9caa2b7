//! The application, on the pod's own address.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulkhead_core::reason::Reason;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Connect;
use crate::failure::Failure;
use crate::socket;

/// The application is on the same host: a connection that takes longer will not
/// come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The application's listener.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    /// Where it is said whether anybody listens there.
    pub(crate) presence: Presence,
}

/// Whether the application was there when it was connected to last. Cheap to clone;
/// all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Presence(Rc<watch::Sender<bool>>);

impl Default for Presence {
    /// It is, until the contrary is seen.
    fn default() -> Self {
        Self(Rc::new(watch::Sender::new(true)))
    }
}

impl Presence {
    /// Waits until nobody listens any more.
    pub(crate) async fn ended(&self) {
        let mut is_there = self.0.subscribe();
        // The sender is ours, so it does not go away.
        let _ = is_there.wait_for(|is_there| !is_there).await;
    }

    fn set(&self, is_there: bool) {
        self.0
            .send_if_modified(|known| std::mem::replace(known, is_there) != is_there);
    }
}

impl Connect for App {
    type Io = TcpStream;

    async fn connect(&self) -> Result<TcpStream, Failure> {
        let dialled = dial(self.address, CONNECT_TIMEOUT).await;
        match &dialled {
            Ok(_) => self.presence.set(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.presence.set(false);
            }
            Err(_) => {}
        }
        dialled.map_err(|error| failure(self.address, &error))
    }
}

/// Connects a socket and sets it up as all of ours are.
pub(super) async fn connect(address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    let dialled = dial(address, within).await;
    dialled.map_err(|error| failure(address, &error))
}

async fn dial(address: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let Ok(connected) = timeout(within, TcpStream::connect(address)).await else {
        let problem = format!("no answer within {within:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
    };
    let stream = connected?;
    socket::prepare(&stream);
    Ok(stream)
}

fn failure(address: SocketAddr, error: &io::Error) -> Failure {
    let detail = format!("connecting to {address}: {error}");
    Failure::new(Reason::UpstreamConnectFailed, detail)
}
