//! What `bulkhead-init` does to a pod's traffic, with real packets: the program
//! itself in a network namespace, and sockets around it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod again;
mod agreement;
mod inbound;
mod itself;
mod outbound;
mod pod;
mod refused;
mod tried;
