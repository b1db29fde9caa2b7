//! Idle connections to an upstream, kept for the next request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::{Connect, Mesh, MeshStream};
use crate::buffer::Buffered;
use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::http1::{Lease, Upstreams};

/// Shorter than the time for which the peer's proxy keeps an idle connection, so
/// that no request meets one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The most idle connections kept for one upstream and worker.
const MAX_IDLE: usize = 256;

/// A worker's connections to one upstream, as one client connection uses them.
/// Clones share what is idle.
#[derive(Clone)]
pub(crate) struct Pool {
    mesh: Rc<Mesh>,
    idle: Rc<RefCell<Vec<Idle>>>,
    /// What the connection in use was made with.
    in_use: Option<Arc<Credentials>>,
}

struct Idle {
    connection: Buffered<MeshStream>,
    since: Instant,
    /// What it was made with. Requests do not travel under an old certificate
    /// when there is a new one.
    credentials: Option<Arc<Credentials>>,
}

impl Pool {
    pub(crate) fn new(mesh: Mesh) -> Self {
        Self {
            mesh: Rc::new(mesh),
            idle: Rc::default(),
            in_use: None,
        }
    }

    /// The latest that was given back and is still good: the others then age,
    /// and a pool that once was large shrinks.
    fn take_idle(&self) -> Option<Buffered<MeshStream>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| {
            idle.since.elapsed() < IDLE_TIMEOUT && is_same(&idle.credentials, &self.in_use)
        });
        while let Some(mut candidate) = idle.pop() {
            if is_quiet(&mut candidate.connection) {
                return Some(candidate.connection);
            }
        }
        None
    }
}

fn is_same(one: &Option<Arc<Credentials>>, other: &Option<Arc<Credentials>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

impl Upstreams for Pool {
    type Io = MeshStream;
    const POOLED: bool = true;

    async fn take(&mut self, fresh: bool) -> Result<Lease<MeshStream>, Failure> {
        self.in_use = self.mesh.credentials();
        if !fresh && let Some(connection) = self.take_idle() {
            return Ok(Lease {
                connection,
                reused: true,
            });
        }
        Ok(Lease {
            connection: Buffered::new(self.mesh.connect().await?),
            reused: false,
        })
    }

    fn give_back(&mut self, connection: Buffered<MeshStream>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                connection,
                since: Instant::now(),
                credentials: self.in_use.take(),
            });
        }
    }
}

/// Whether an idle connection is still open and says nothing, as it should.
/// Whatever a server says unasked, the end of the stream included, makes its
/// connection useless.
pub(super) fn is_quiet<S: tokio::io::AsyncRead + Unpin>(connection: &mut Buffered<S>) -> bool {
    // Without tokio's limit on what a task does at once: beyond it, every
    // connection would look open.
    unconstrained(connection.fill()).now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_connections_that_have_ended_are_all_seen_to_have() {
        // As after a peer's restart. Tokio lets a task do 128 things at once.
        for number in 0..300 {
            let (near, far) = tokio::io::duplex(64);
            drop(far);
            assert!(!is_quiet(&mut Buffered::new(near)), "connection {number}");
        }
    }
}
