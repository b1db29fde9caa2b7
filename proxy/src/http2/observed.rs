//! A response body on its way to the client, watched for its end: that is when
//! a stream's outcome is known, and gRPC's is in the trailers.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bulkhead_core::reason::Reason;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::InHand;
use crate::failure::{Failure, REASON_HEADER};
use crate::metrics::{CutBy, GrpcStatus, HttpMetrics, HttpRequest};

pub(super) struct Observed {
    body: Incoming,
    metrics: Rc<HttpMetrics>,
    request: HttpRequest,
    started: Instant,
    status: u16,
    grpc_status: GrpcStatus,
    reported: bool,
    /// Its end was told in trailers of the proxy's own.
    has_broken_off: bool,
    /// Counts the stream until its end.
    in_hand: InHand,
}

impl Observed {
    pub(super) fn new(
        response: http::Response<Incoming>,
        metrics: Rc<HttpMetrics>,
        request: HttpRequest,
        started: Instant,
        in_hand: InHand,
    ) -> http::Response<Self> {
        let status = response.status().as_u16();
        // A response that is only trailers has the status among its headers.
        let grpc_status = grpc_status(response.headers());
        response.map(|body| Self {
            body,
            metrics,
            request,
            started,
            status,
            grpc_status,
            reported: false,
            has_broken_off: false,
            in_hand,
        })
    }

    /// Ends a call whose server has gone as gRPC has it for a connection that breaks:
    /// UNAVAILABLE, which clients know to be worth another try. They make INTERNAL or
    /// UNKNOWN of a stream that is reset.
    fn break_off(&mut self, failure: &Failure) -> HeaderMap {
        self.has_broken_off = true;
        self.reported = true;
        let status = super::grpc_status(failure.reason);
        let (request, took) = (&self.request, self.started.elapsed());
        let counted = GrpcStatus(Some(status));
        self.metrics
            .refused(Some(request), failure, self.status, counted, took);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
        let message = HeaderValue::from_static(failure.reason.cause());
        trailers.insert("grpc-message", message);
        let code = HeaderValue::from_static(failure.reason.code());
        trailers.insert(REASON_HEADER, code);
        trailers
    }

    fn report(&mut self, end: Result<(), CutBy>) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let took = self.started.elapsed();
        match end {
            Ok(()) => {
                self.in_hand.0.finished_request();
                self.metrics
                    .finished_grpc(&self.request, self.status, self.grpc_status, took);
            }
            Err(by) => {
                let error = std::io::ErrorKind::ConnectionReset.into();
                self.metrics.cut(&self.request, took, by, &error);
            }
        }
    }
}

impl Body for Observed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if this.has_broken_off {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.request.sends(data.len() as u64);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    this.grpc_status = grpc_status(trailers);
                }
                if this.body.is_end_stream() {
                    this.report(Ok(()));
                }
            }
            Some(Err(error)) if this.request.is_grpc() && !is_reset_by_server(error) => {
                let failure = Failure::new(Reason::UpstreamClosed, error);
                return Poll::Ready(Some(Ok(Frame::trailers(this.break_off(&failure)))));
            }
            Some(Err(_)) => this.report(Err(CutBy::Server)),
            None => this.report(Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_broken_off || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that is dropped before its end was cancelled by the client; one that
/// had nothing to say was whole from the start.
impl Drop for Observed {
    fn drop(&mut self) {
        self.report(if self.body.is_end_stream() {
            Ok(())
        } else {
            Err(CutBy::Client)
        });
    }
}

/// Whether a server ended this one stream, in a way that is passed on as it is.
fn is_reset_by_server(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let error = source.and_then(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|error| error.is_reset() && error.is_remote())
}

fn grpc_status(headers: &HeaderMap) -> GrpcStatus {
    let status = headers.get("grpc-status");
    GrpcStatus(status.and_then(|status| status.to_str().ok()?.parse().ok()))
}
