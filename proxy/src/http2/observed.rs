//! A response body on its way to the client, watched for its end: that is when
//! a stream's outcome is known, and gRPC's is in the trailers.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::metrics::{CutBy, GrpcStatus, HttpMetrics, HttpRequest};
use crate::upstream::InFlight;

pub(super) struct Observed {
    body: Incoming,
    metrics: Rc<HttpMetrics>,
    request: HttpRequest,
    started: Instant,
    status: u16,
    grpc_status: GrpcStatus,
    reported: bool,
    /// Counts the stream until its end.
    _in_flight: Option<InFlight>,
}

impl Observed {
    pub(super) fn new(
        response: http::Response<Incoming>,
        metrics: Rc<HttpMetrics>,
        request: HttpRequest,
        started: Instant,
        in_flight: Option<InFlight>,
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
            _in_flight: in_flight,
        })
    }

    fn report(&mut self, end: Result<(), CutBy>) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let took = self.started.elapsed();
        match end {
            Ok(()) => {
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
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.grpc_status = grpc_status(trailers);
                }
                if this.body.is_end_stream() {
                    this.report(Ok(()));
                }
            }
            Some(Err(_)) => this.report(Err(CutBy::Server)),
            None => this.report(Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
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

fn grpc_status(headers: &HeaderMap) -> GrpcStatus {
    let status = headers.get("grpc-status");
    GrpcStatus(status.and_then(|status| status.to_str().ok()?.parse().ok()))
}
