//! A front of the proxy in memory, for its fuzz target: no other build has this.

use std::io;
use std::rc::Rc;

use bulkhead_core::sidecar::{SidecarConfig, default_trust_domain};
use bulkhead_runtime::drain;
use tokio::io::DuplexStream;

use crate::access_log::AccessLog;
use crate::accounts::{Accounts, Terms};
use crate::budget::Budget;
use crate::failure::Failure;
use crate::http1::Session;
use crate::http2;
use crate::metrics::{Direction, Metrics};
use crate::upstream::Connect;

/// Makes connections to an application that is in this process.
struct InMemory<F>(F);

impl<F: Fn() -> DuplexStream> Connect for InMemory<F> {
    type Io = DuplexStream;

    async fn connect(&self) -> Result<DuplexStream, Failure> {
        Ok((self.0)())
    }
}

/// Serves one HTTP/2 connection of a stranger to its end, before an application that
/// `connect` connects to. Wants a `LocalSet` around it.
///
/// # Errors
/// The client broke the connection, or the protocol.
pub async fn serve_http2(
    client: DuplexStream,
    connect: impl Fn() -> DuplexStream + 'static,
) -> io::Result<()> {
    let config = SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into());
    let identity = config.spiffe_id().map_err(io::Error::other)?;
    let metrics = Metrics::new(&config, &identity, AccessLog::silent());
    let (_trigger, drain) = drain::channel();
    let connections = Accounts::new(Budget::new(None));
    let mut session = Session {
        metrics: Rc::new(metrics.http(Direction::Inbound, metrics.inbound(None))),
        terms: Terms {
            drain,
            until: None,
            account: connections.open().account.clone(),
        },
        policy: None,
        trace: None,
    };
    http2::serve(client, InMemory(connect), &mut session).await
}
