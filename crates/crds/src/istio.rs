//! Istio's resources that people have written already, as far as Bulkhead reads
//! them. Bulkhead defines none of them and never writes one.

pub mod peer_authentication;
