//! Tokens for workloads: `bulkhead.ca.v1.WorkloadTokens`. Its messages have
//! texts and a number; there is nothing to convert.

pub use crate::generated::tokens::workload_tokens_client::WorkloadTokensClient;
pub use crate::generated::tokens::workload_tokens_server::{WorkloadTokens, WorkloadTokensServer};
pub use crate::generated::tokens::{
    JwtBundleRequest, JwtBundleResponse, MintJwtSvidRequest, MintJwtSvidResponse,
};

/// What the paths of the service's calls begin with.
pub const PATH: &str = "/bulkhead.ca.v1.WorkloadTokens/";
