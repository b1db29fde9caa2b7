//! A mesh in one process: what its users rely on, and how it fails them.

mod admin;
mod broken;
mod bytes;
mod hostile;
mod http;
mod identity;
mod modes;
mod pair;
mod peers;
mod probes;
mod shutdown;
