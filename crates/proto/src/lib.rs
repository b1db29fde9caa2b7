//! What goes over the wire between Bulkhead's programs, and conversions to
//! values that cannot be wrong; nothing else.
//!
//! - [`ca`]: the CSR service; [`workload_tokens`]: tokens from the same CA.
//! - [`workload_api`]: what an application asks its sidecar for.
//! - [`discovery`]: what control tells a proxy; [`xds`]: how it gets there.
//! - [`retry`]: a refusal for lack of room, and when to come again.
//! - [`health`]: gRPC health checks, which probes use.
//!
//! Generated types are used where gRPC's own traits name them, and converted at
//! once.

pub mod ca;
pub mod discovery;
pub mod health;
pub mod retry;
pub mod workload_api;
pub mod workload_tokens;
pub mod xds;

/// What is generated from the .proto files.
#[expect(
    clippy::allow_attributes,
    reason = "generated code silences lints in its own way"
)]
pub mod generated {
    tonic::include_proto!("istio.v1.auth");

    pub mod discovery {
        tonic::include_proto!("bulkhead.discovery.v1");
    }

    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }

    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }

    pub mod tokens {
        tonic::include_proto!("bulkhead.ca.v1");
    }

    pub mod workload_api {
        tonic::include_proto!("_");
    }

    pub mod xds {
        tonic::include_proto!("envoy.service.discovery.v3");
    }
}
