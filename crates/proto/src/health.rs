//! The gRPC health checking protocol: one call, `grpc.health.v1.Health/Check`.
//! Its messages have a string and a number; there is nothing to convert.

pub use crate::generated::health::health_check_response::ServingStatus;
pub use crate::generated::health::health_client::HealthClient;
pub use crate::generated::health::health_server::{Health, HealthServer};
pub use crate::generated::health::{HealthCheckRequest, HealthCheckResponse};
