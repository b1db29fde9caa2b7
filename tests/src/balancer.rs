//! One address for several replicas, as a Service is one in a cluster.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Gives each connection to the next of the backends.
///
/// A backend is taken out before it stops and put in when it is ready; this is
/// what readiness does in a cluster. Connections that are open stay.
pub struct Balancer {
    address: SocketAddr,
    backends: watch::Sender<Vec<SocketAddr>>,
}

impl Balancer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("there is a free port on loopback");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let (backends, current) = watch::channel(Vec::new());
        tokio::spawn(accept(listener, current));
        Self { address, backends }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, backends: impl IntoIterator<Item = SocketAddr>) {
        self.backends.send_replace(backends.into_iter().collect());
    }
}

async fn accept(listener: TcpListener, backends: watch::Receiver<Vec<SocketAddr>>) {
    let mut turn = 0;
    while let Ok((mut client, _)) = listener.accept().await {
        turn += 1;
        let backend = {
            let backends = backends.borrow();
            match backends.as_slice() {
                // The client sees a closed connection, as of a Service without
                // endpoints.
                [] => continue,
                backends => backends[turn % backends.len()],
            }
        };
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(backend).await {
                // A connection that breaks is broken for the other side too.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
