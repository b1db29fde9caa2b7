//! The metrics of a process, and the endpoints that show how it is.
//!
//! `/metrics` (OpenMetrics text), `/ready` (503 with the missing conditions),
//! `/live` (200 for as long as the process can answer at all).

use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::registry::Registry;

use crate::http_server::{Method, Request, Response, StatusCode, text, with_type};
use crate::readiness::Readiness;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a process shows of itself. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Monitoring {
    registry: Arc<RwLock<Registry>>,
    pub readiness: Readiness,
}

impl Monitoring {
    /// Adds metrics to the registry.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner));
    }

    /// All metrics as OpenMetrics text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String does not fail");
        text
    }

    /// The answer to a request for one of these endpoints, or nothing where the
    /// path is another's.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        match request.uri().path() {
            "/metrics" => Some(with_type(StatusCode::OK, OPEN_METRICS, self.metrics())),
            "/ready" => Some(self.ready()),
            "/live" => Some(text(StatusCode::OK, "live\n")),
            _ => None,
        }
    }

    /// [`Monitoring::answer`], with 404 for everything else: the whole of a
    /// control-plane program's monitoring port.
    pub fn answer_or_not_found(&self, request: &Request) -> Response {
        self.answer(request)
            .unwrap_or_else(|| text(StatusCode::NOT_FOUND, "try /metrics, /ready or /live\n"))
    }

    fn ready(&self) -> Response {
        let missing = self.readiness.missing();
        if missing.is_empty() {
            text(StatusCode::OK, "ready\n")
        } else {
            let body = format!("not ready, waiting for: {}\n", missing.join(", "));
            text(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}
