//! Mutual handshakes with a server's proxy alone, each with one request, which is
//! what shows that the server has verified its client.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CONNECTING, Ground, HANDSHAKE, Pair, RESUMED, request};
use crate::http1::{Kept, connect};
use crate::load::{Caller, maximum};
use crate::results::Table;

/// How many tickets a client keeps; each is good for one connection.
const TICKETS: usize = 8;

/// Full ones; then resumed ones, where the proxy resumes.
pub(super) async fn measure(ground: &Ground<'_>, pair: &Pair, table: &mut Table) -> Result<()> {
    let (warm_up, window) = (ground.settings.warm_up / 2, ground.settings.window / 2);
    let full = (0..CONNECTING).map(|_| Handshake::new(pair, HandshakeKind::Full));
    let made = maximum(full.collect(), warm_up, window, &[&pair.server]).await?;
    table.add(pair.name, HANDSHAKE, made.cpu[0] * 1_000.0);

    let mut resumed = Vec::new();
    for _ in 0..CONNECTING {
        let caller = Handshake::new(pair, HandshakeKind::Resumed);
        // The first is where the tickets come from.
        caller.shake().await?;
        if caller.shake().await? != Some(HandshakeKind::Resumed) {
            return Ok(());
        }
        resumed.push(caller);
    }
    let made = maximum(resumed, warm_up, window, &[&pair.server]).await?;
    table.add(pair.name, RESUMED, made.cpu[0] * 1_000.0);
    Ok(())
}

struct Handshake {
    address: SocketAddr,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    /// What each must be.
    kind: HandshakeKind,
    request: Arc<[u8]>,
}

impl Handshake {
    fn new(pair: &Pair, kind: HandshakeKind) -> Self {
        let mut tls = ClientConfig::clone(&pair.tls);
        if kind == HandshakeKind::Resumed {
            tls.resumption = Resumption::in_memory_sessions(TICKETS);
        }
        Self {
            address: pair.exit,
            server_name: pair.server_name.clone(),
            tls: TlsConnector::from(Arc::new(tls)),
            kind,
            request: request("connection: close\r\n"),
        }
    }

    /// What kind of handshake was made, with a request after it.
    async fn shake(&self) -> Result<Option<HandshakeKind>> {
        let mut connection = Kept::over(self.connect().await?, &self.request);
        connection.answer().await?;
        Ok(connection.into_stream().get_ref().1.handshake_kind())
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = connect(self.address).await?;
        Ok(self.tls.connect(self.server_name.clone(), stream).await?)
    }
}

impl Caller for Handshake {
    async fn call(&mut self) -> Result<()> {
        let kind = self.shake().await?;
        ensure!(kind == Some(self.kind), "a handshake was {kind:?}");
        Ok(())
    }
}
