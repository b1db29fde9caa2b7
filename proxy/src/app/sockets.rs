//! All sockets of a proxy, bound before anything runs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use bulkhead_core::sidecar::SidecarConfig;
use socket2::SockRef;

use super::StartError;
use crate::budget::SocketBuffers;
use crate::discovery::Targets;
use crate::socket;
use crate::worker::{Destination, InboundSocket, OutboundSocket};
use crate::workload_api;

pub(super) struct Sockets {
    pub(super) inbound: Vec<InboundSocket>,
    pub(super) outbound: Vec<OutboundSocket>,
    pub(super) redirected: Vec<OutboundSocket>,
    pub(super) status: tokio::net::TcpListener,
    pub(super) admin: tokio::net::TcpListener,
    pub(super) workload_api: Option<tokio::net::UnixListener>,
}

impl Sockets {
    pub(super) fn bind(config: &SidecarConfig) -> Result<Self, StartError> {
        let inbound = config.inbound.iter().map(|listener| {
            Ok(InboundSocket {
                socket: listen("inbound connections", listener.listen)?,
                forward: listener.forward,
            })
        });
        let outbound = config.outbound.iter().map(|upstream| {
            Ok(OutboundSocket {
                socket: listen("outbound connections", upstream.listen)?,
                destination: Destination::Upstream(Arc::new(Targets::of_settings(upstream))),
            })
        });
        let mut redirected = Vec::new();
        for listener in &config.redirected_outbound {
            let socket = match socket::listen(listener.listen) {
                Ok(socket) => socket,
                // A pod without IPv6 has no connections of that kind either.
                Err(error) if listener.listen.is_ipv6() && socket::has_no_ipv6(&error) => continue,
                Err(error) => return Err(failed("redirected connections", listener.listen, error)),
            };
            redirected.push(OutboundSocket {
                socket,
                destination: Destination::Anywhere(listener.destination),
            });
        }
        Ok(Self {
            inbound: inbound.collect::<Result<_, StartError>>()?,
            outbound: outbound.collect::<Result<_, StartError>>()?,
            redirected,
            status: listen_async("metrics and readiness", config.status_address)?,
            admin: listen_async("admin requests", config.admin_address)?,
            workload_api: config
                .workload_api_path
                .as_deref()
                .map(|path| {
                    workload_api::bind(path).map_err(|error| StartError::WorkloadApi {
                        path: path.to_owned(),
                        error,
                    })
                })
                .transpose()?,
        })
    }

    /// Bounds what connections may send that are not accepted yet.
    pub(super) fn bound_receiving(&self, buffers: SocketBuffers) {
        let inbound = self.inbound.iter().map(|listener| &listener.socket);
        let outbound = self.outbound.iter().chain(&self.redirected);
        for socket in inbound.chain(outbound.map(|listener| &listener.socket)) {
            socket::bound_receiving(&SockRef::from(socket), buffers);
        }
    }

    /// The same sockets for another worker.
    pub(super) fn share(&self) -> io::Result<(Vec<InboundSocket>, Vec<OutboundSocket>)> {
        let inbound = self.inbound.iter().map(|listener| {
            Ok(InboundSocket {
                socket: listener.socket.try_clone()?,
                forward: listener.forward,
            })
        });
        let outbound = self.outbound.iter().chain(&self.redirected);
        let outbound = outbound.map(|listener| {
            Ok(OutboundSocket {
                socket: listener.socket.try_clone()?,
                destination: listener.destination.clone(),
            })
        });
        let inbound: io::Result<_> = inbound.collect();
        let outbound: io::Result<_> = outbound.collect();
        Ok((inbound?, outbound?))
    }
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    socket::listen(address).map_err(|error| failed(what, address, error))
}

fn failed(what: &'static str, address: SocketAddr, error: io::Error) -> StartError {
    StartError::Listen {
        what,
        address,
        error,
    }
}

fn listen_async(
    what: &'static str,
    address: SocketAddr,
) -> Result<tokio::net::TcpListener, StartError> {
    tokio::net::TcpListener::from_std(listen(what, address)?)
        .map_err(|error| failed(what, address, error))
}
