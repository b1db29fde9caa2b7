//! The proxy's two small HTTP servers: the status port, which is for kubelet and
//! Prometheus and can change nothing, and the admin port, which is on loopback.

use std::sync::Arc;

use bulkhead_core::bypass::{BypassOrder, MAX_ORDER};
use bulkhead_core::discovery::BypassPhase;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_runtime::http_server::{
    Method, Request, Response, StatusCode, is_from_this_host, json, text,
};
use bulkhead_runtime::log;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_workload::state::State;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::RenewalRequests;
use crate::access_log::AccessLog;
use crate::bypass::{self, Source, Switch};
use crate::credentials::Latest;
use crate::metrics::Connections;
use crate::probe;

/// The longest log filter that is taken from a query.
const MAX_FILTER: usize = 256;

/// The condition of readiness that no longer holds once a drain has begun.
pub(crate) const NOT_DRAINING: &str = "not draining";

/// `/metrics`, `/ready`, `/live`, and the application's probes.
pub(crate) struct Status {
    pub(crate) config: Arc<SidecarConfig>,
    pub(crate) monitoring: Monitoring,
    pub(crate) bypass: bypass::State,
}

impl Status {
    pub(crate) async fn answer(self: Arc<Self>, request: Request) -> Response {
        if let Some(response) = answer(&request, &self.monitoring, &self.bypass) {
            return response;
        }
        match self.config.probes.get(request.uri().path()) {
            Some(probe) => probe::perform(probe).await,
            None => text(
                StatusCode::NOT_FOUND,
                "try /metrics, /ready, /live, or an application's probe\n",
            ),
        }
    }
}

/// What people and tools on the same host may see and do.
pub(crate) struct Admin {
    pub(crate) config: Arc<SidecarConfig>,
    pub(crate) monitoring: Monitoring,
    pub(crate) latest: Latest,
    pub(crate) renewal: watch::Receiver<State>,
    pub(crate) renewals: RenewalRequests,
    pub(crate) connections: Connections,
    pub(crate) access_log: AccessLog,
    pub(crate) drain: mpsc::Sender<()>,
    pub(crate) level: Option<log::Level>,
    pub(crate) switch: Switch,
}

const ADMIN_HELP: &str = "\
GET  /config_dump            what the proxy was told
GET  /certs                  the certificate and trust bundle in use, and how renewal goes
GET  /connections            the connections that are open: whose, to whom, for how long
GET  /bypass                 whether the proxy stands aside, and by whose word
POST /bypass                 stand aside, or no more: {\"phase\":\"off|accept|forward\",\"reason\",\"by\",\"until\"};
                            \"takes_back\":true in it: also what control said before no longer counts
POST /renew                  get a new certificate now
POST /logging?level=FILTER   change the log level, such as info or warn,bulkhead_proxy=debug
GET  /log/access             whether the access log is on
POST /log/access?on=BOOLEAN  switch it on or off
POST /drain                  stop as SIGTERM does
GET  /metrics /ready /live
";

impl Admin {
    pub(crate) async fn answer(self: Arc<Self>, request: Request) -> Response {
        if !is_from_this_host(&request) {
            return text(
                StatusCode::FORBIDDEN,
                "use localhost or a loopback address, and no browser's page\n",
            );
        }
        if let Some(response) = answer(&request, &self.monitoring, &self.switch.state()) {
            return response;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/config_dump") => reply(&self.config_dump()),
            (&Method::GET, "/certs") => reply(&self.certificates()),
            (&Method::GET, "/connections") => reply(&self.connections()),
            (&Method::GET, "/bypass") => reply(&self.switch.state().in_force().to_json()),
            (&Method::POST, "/bypass") => self.ask_to_bypass(request).await,
            (&Method::POST, "/renew") => {
                self.renewals.renew();
                text(StatusCode::ACCEPTED, "renewing\n")
            }
            (&Method::POST, "/logging") => self.set_level(request.uri().query()),
            (&Method::GET, "/log/access") => reply(&self.access_log()),
            (&Method::POST, "/log/access") => self.switch_access_log(request.uri().query()),
            (&Method::POST, "/drain") => {
                // Full means that somebody has asked already.
                let _ = self.drain.try_send(());
                text(StatusCode::ACCEPTED, "draining\n")
            }
            (_, "/bypass" | "/renew" | "/logging" | "/drain") => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this changes something: use POST\n",
            ),
            _ => text(StatusCode::NOT_FOUND, ADMIN_HELP),
        }
    }

    /// The settings as the variables that say them; none of them is a secret.
    fn config_dump(&self) -> Value {
        let env = self.config.to_env().into_iter();
        let settings = env.map(|(name, value)| (name.to_owned(), Value::String(value)));
        let bypass = self.switch.state().in_force().to_json();
        let bypass = std::iter::once(("bypass".to_owned(), bypass));
        settings
            .chain(bypass)
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Does what an order says, and answers with what is in force then.
    async fn ask_to_bypass(&self, request: Request) -> Response {
        let body = Limited::new(request.into_body(), MAX_ORDER).collect().await;
        let order = match body {
            Ok(body) => BypassOrder::from_json(&body.to_bytes()),
            Err(error) => {
                let problem = format!("reading the order failed: {error}\n");
                return text(StatusCode::BAD_REQUEST, problem);
            }
        };
        match order {
            Ok(order) => {
                let takes_back = order.takes_back;
                let asked = order.for_pod(&self.config.pod_name);
                if takes_back {
                    self.switch.take_back(asked);
                } else {
                    self.switch.ask(Source::Admin, asked);
                }
                reply(&self.switch.state().in_force().to_json())
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    /// The certificate, the trust bundle and how renewal goes; no key.
    fn certificates(&self) -> Value {
        let latest = self.latest.get();
        let identity = latest.as_ref().map(|latest| latest.identity());
        self.renewal.borrow().to_json(identity)
    }

    fn connections(&self) -> Value {
        self.connections.to_json()
    }

    fn access_log(&self) -> Value {
        json!({
            "on": self.access_log.is_on(),
            "lines_dropped": self.access_log.dropped().get(),
        })
    }

    fn switch_access_log(&self, query: Option<&str>) -> Response {
        let on = query.and_then(|query| query.strip_prefix("on=")?.parse().ok());
        let Some(on) = on else {
            return text(StatusCode::BAD_REQUEST, "say ?on=true or ?on=false\n");
        };
        match self.access_log.switch(on) {
            Ok(()) => reply(&self.access_log()),
            Err(error) => {
                let problem = format!("starting the access log failed: {error}\n");
                text(StatusCode::INTERNAL_SERVER_ERROR, problem)
            }
        }
    }

    fn set_level(&self, query: Option<&str>) -> Response {
        let filter = query.and_then(|query| query.strip_prefix("level="));
        let Some(filter) = filter.filter(|filter| filter.len() <= MAX_FILTER) else {
            return text(StatusCode::BAD_REQUEST, "say ?level=FILTER\n");
        };
        match &self.level {
            None => text(
                StatusCode::CONFLICT,
                "this process's log is not the proxy's own\n",
            ),
            Some(level) => match level.set(filter) {
                Ok(()) => text(StatusCode::OK, format!("the log level is {filter}\n")),
                Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
        }
    }
}

/// What the process's monitoring answers, but for readiness while the proxy
/// stands aside: then whatever is missing is not needed, and a pod that waited
/// for it would be down for want of it.
fn answer(request: &Request, monitoring: &Monitoring, bypass: &bypass::State) -> Option<Response> {
    let is_needed = |missing: &&str| *missing == NOT_DRAINING;
    if request.uri().path() == "/ready"
        && bypass.phase() > BypassPhase::Off
        && !monitoring.readiness.missing().iter().any(is_needed)
    {
        return Some(text(StatusCode::OK, "ready, by bypass\n"));
    }
    monitoring.answer(request)
}

fn reply(value: &Value) -> Response {
    json(StatusCode::OK, format!("{value:#}\n"))
}
