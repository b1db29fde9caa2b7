//! The SPIFFE Workload API: the application's own way to the workload's SVIDs, on
//! a Unix socket that only its pod has
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>,
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_Endpoint.md>).
//!
//! ```text
//!  application ── socket ─▶ connection ─▶ service ─┬─ X.509-SVIDs ◀── credentials
//!                                                  └─ JWT-SVIDs ◀──── tokens ◀── CA
//! ```
//!
//! - `socket`: the file, there whole or not at all.
//! - `connection`: HTTP/2 with bounds, and the header that every call must have.
//! - [`authority`]: libraries that write the socket's path where a host belongs.
//! - `service`: the calls.
//! - `tokens`: JWT-SVIDs and what verifies them, asked of the CA and kept a while.
//!
//! Nobody is authenticated here: who reaches the socket is in the pod, and the
//! pod is the workload. That is where the private key leaves the sidecar.

pub mod authority;
mod connection;
mod service;
mod socket;
#[cfg(test)]
mod tests;
mod tokens;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bulkhead_core::identity::SpiffeId;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use tokio::net::UnixListener;

use crate::credentials::Latest;
use tokens::{Mint, Tokens};

/// Makes the socket; what was left there by an earlier proxy goes.
pub(crate) fn bind(path: &str) -> io::Result<UnixListener> {
    socket::bind(Path::new(path))
}

/// What the service needs.
pub(crate) struct WorkloadApi<M> {
    /// Whose SVIDs are given out; nobody else's.
    pub(crate) id: SpiffeId,
    pub(crate) latest: Latest,
    pub(crate) source: M,
    pub(crate) clock: Clock,
}

impl<M: Mint> WorkloadApi<M> {
    /// Serves until the drain starts.
    pub(crate) async fn serve(self, listener: UnixListener, drain: drain::Watch) {
        let tokens = Tokens::new(self.source, self.clock.clone());
        let service = service::Service {
            id: self.id,
            latest: self.latest,
            tokens: Arc::clone(&tokens),
            clock: self.clock,
        };
        tokio::select! {
            () = connection::serve(listener, service, drain) => {}
            () = tokens.follow() => {}
        }
    }
}
