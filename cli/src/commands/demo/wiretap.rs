//! A stranger on the wire: takes connections, passes every byte on, and keeps a
//! copy.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// The most that is kept of each direction, in bytes.
const MAX_KEPT: usize = 1 << 20;

/// What went over the wire, all connections in one.
#[derive(Clone, Debug, Default)]
pub(super) struct Recording {
    pub(super) from_client: Vec<u8>,
    pub(super) from_server: Vec<u8>,
}

/// A running wiretap; dropping it takes no new connections.
pub(super) struct Wiretap {
    pub(super) address: SocketAddr,
    recording: Arc<Mutex<Recording>>,
    task: AbortHandle,
}

impl Wiretap {
    pub(super) async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("binding a port for the wiretap failed")?;
        let address = listener.local_addr()?;
        let recording = Arc::<Mutex<Recording>>::default();
        let kept = Arc::clone(&recording);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, target, Arc::clone(&kept)));
            }
        });
        Ok(Self {
            address,
            recording,
            task: task.abort_handle(),
        })
    }

    pub(super) fn recording(&self) -> Recording {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Wiretap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, recording: Arc<Mutex<Recording>>) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return; // The client sees its connection end.
    };
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    // Whichever way a direction ends, the peers notice it themselves.
    let _ = tokio::join!(
        pass(client_read, server_write, &recording, |kept| &mut kept
            .from_client),
        pass(server_read, client_write, &recording, |kept| &mut kept
            .from_server),
    );
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    recording: &Mutex<Recording>,
    side: fn(&mut Recording) -> &mut Vec<u8>,
) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        {
            let mut recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = side(&mut recording);
            let room = MAX_KEPT.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..length.min(room)]);
        }
        to.write_all(&buffer[..length]).await?;
    }
}
