//! Messages that two readers could take for different ones, through both proxies, in
//! front of real servers that write down what they read. Nothing may be read there
//! that was not read here, and whatever follows on the connection is read as itself.
//!
//! - `requests.txt`, `responses.txt`, `streams.txt`: the cases.
//! - [`corpus`]: reading those files; [`servers`]: nginx and Node; [`answers`]: what
//!   the client got.

mod answers;
mod corpus;
mod requests;
mod responses;
mod servers;
mod streams;
