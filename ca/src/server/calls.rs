//! Which service a call is for.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bulkhead_proto::ca::IstioCertificateServiceServer;
use bulkhead_proto::workload_tokens::{self, WorkloadTokensServer};
use hyper::body::Incoming;
use tonic::codegen::Service;

use crate::service::CaService;
use crate::workload_tokens::TokenService;

/// A request, and some room for metadata.
const MAX_MESSAGE: usize = 32 * 1024;

/// Both services of the port.
#[derive(Clone)]
pub(super) struct Calls {
    certificates: IstioCertificateServiceServer<CaService>,
    tokens: WorkloadTokensServer<TokenService>,
}

impl Calls {
    pub(super) fn new(certificates: CaService, tokens: TokenService) -> Self {
        Self {
            certificates: IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(usize::MAX),
            tokens: WorkloadTokensServer::new(tokens).max_decoding_message_size(MAX_MESSAGE),
        }
    }
}

impl Service<hyper::Request<Incoming>> for Calls {
    type Response = hyper::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// What is neither's path is answered with Unimplemented, by either.
    fn call(&mut self, request: hyper::Request<Incoming>) -> Self::Future {
        if request.uri().path().starts_with(workload_tokens::PATH) {
            self.tokens.call(request)
        } else {
            self.certificates.call(request)
        }
    }
}
