//! Protocols as they are in the wild: programs that the project has no part in, and
//! messages that are meant to be read in two ways, through a client's and a server's
//! proxy with mutual TLS between them.
//!
//! - [`programs`]: starting them, and hearing what they say.
//! - [`curl`], [`load`]: HTTP; [`grpc`]; [`websocket`]; [`server_first`]: databases and
//!   mail.
//! - [`h2spec`]: HTTP/2, rule by rule.
//! - [`smuggling`]: one reading of a message.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod curl;
mod grpc;
mod h2spec;
mod load;
#[path = "../loopback/pair.rs"]
mod pair;
mod programs;
mod server_first;
mod smuggling;
mod websocket;
