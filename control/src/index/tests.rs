//! What proxies are told, by the manifests that people write.

mod destinations;
mod endpoints;
mod inbound;
mod missing;
mod world;
