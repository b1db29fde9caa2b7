//! One admission review, from its bytes to the answer's.
//!
//! What cannot be answered as a review is answered in HTTP; then the API server
//! does what the failure policy of the entry says, and of the statuses it shows
//! only 500 with our words. So a pod whose namespace cannot be read gets a 500:
//! where somebody opted in the pod is refused, with the reason, and tried again
//! by its controller; where nobody did it starts without a sidecar. Everything
//! that is wrong with the pod itself is a denial, which counts whatever the
//! policy and whose message kubectl shows.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use axum::http::StatusCode;
use bulkhead_inject::{Decision, Defaults, Injection, Namespace, Refusal, SkipReason, inject};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::events::{Notice, Notices};
use crate::metrics::Metrics;
use crate::namespaces::{Namespaces, is_name};
use crate::review::{Denial, Request, Verdict, shown};

/// Decides about pods, for every connection.
pub(crate) struct Injector {
    pub(crate) namespaces: Namespaces,
    pub(crate) defaults: Defaults,
    pub(crate) notices: Notices,
    pub(crate) metrics: Metrics,
}

/// An answer in HTTP.
#[derive(Debug)]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// A decision about a pod, as it goes into the metric, the log and the audit.
struct Decided {
    decision: &'static str,
    reason: &'static str,
}

impl Injector {
    /// The AdmissionReview that answers the one in `body`.
    pub(crate) async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, HttpError> {
        let request = Request::parse(body).map_err(|error| {
            self.metrics.decided("error", "malformed_review");
            HttpError {
                status: StatusCode::BAD_REQUEST,
                message: error.to_string(),
            }
        })?;
        let verdict = match subject(&request) {
            Subject::Pod(object) => self.judge(&request, object).await?,
            Subject::NotOurs { reason, warning } => {
                self.metrics.decided("skip", reason);
                Verdict {
                    warnings: warning.into_iter().collect(),
                    audit: audit("skip", reason),
                    ..Verdict::default()
                }
            }
            Subject::Unclear(message) => self.denied("malformed_review", message),
        };
        Ok(verdict.to_json(&request.uid))
    }

    async fn judge(&self, request: &Request<'_>, object: &RawValue) -> Result<Verdict, HttpError> {
        let pod: Value = match serde_json::from_str(object.get()) {
            Ok(pod) => pod,
            Err(error) => {
                let message = format!("the pod in the AdmissionReview cannot be parsed: {error}");
                return Ok(self.denied("malformed_pod", message));
            }
        };
        if let Err(message) = is_pod(&pod) {
            return Ok(self.denied("malformed_pod", message));
        }
        let named = pod.pointer("/metadata/namespace").and_then(Value::as_str);
        let name = request
            .namespace
            .as_deref()
            .filter(|name| !name.is_empty())
            .or(named)
            .unwrap_or_default();
        if !is_name(name) {
            let message = format!(
                "the AdmissionReview has to name the pod's namespace, and {:?} cannot be one",
                shown(name)
            );
            return Ok(self.denied("malformed_review", message));
        }
        let decision = self.decide(&pod, name).await?;
        Ok(self.verdict(request, &pod, name, decision))
    }

    /// Decides by what is known of the namespace, and where that would leave
    /// the pod without a sidecar, once more by what the API server has now: it
    /// would not have asked us, had the namespace not opted in.
    async fn decide(&self, pod: &Value, name: &str) -> Result<Decision, HttpError> {
        if let Some(known) = self.namespaces.get(name) {
            let decision = self.guarded(pod, &known)?;
            let by_namespace = matches!(
                decision,
                Decision::Skip(
                    SkipReason::NamespaceLabel
                        | SkipReason::NamespaceAnnotation
                        | SkipReason::NotRequested
                )
            );
            if !by_namespace || !self.namespaces.may_lag() {
                return Ok(decision);
            }
        }
        let namespace = self.read(name).await?;
        self.guarded(pod, &namespace)
    }

    async fn read(&self, name: &str) -> Result<Arc<Namespace>, HttpError> {
        self.namespaces.read(name).await.map_err(|error| {
            self.metrics.namespace_reads_failed.inc();
            self.metrics.decided("error", "namespace_unknown");
            HttpError {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                message: error.to_string(),
            }
        })
    }

    /// A defect in injection costs one answer, and not the process.
    fn guarded(&self, pod: &Value, namespace: &Namespace) -> Result<Decision, HttpError> {
        catch_unwind(AssertUnwindSafe(|| inject(pod, namespace, &self.defaults))).map_err(|_| {
            self.metrics.panics.inc();
            self.metrics.decided("error", "panic");
            HttpError {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                message: "Bulkhead's webhook has a defect that this pod has met; its log says \
                          where: please report it"
                    .to_owned(),
            }
        })
    }

    fn verdict(
        &self,
        request: &Request<'_>,
        pod: &Value,
        namespace: &str,
        decision: Decision,
    ) -> Verdict {
        let decided = Decided::of(&decision);
        self.metrics.decided(decided.decision, decided.reason);
        let mut verdict = Verdict {
            audit: audit(decided.decision, decided.reason),
            ..Verdict::default()
        };
        let pod_name = PodName(pod);
        match decision {
            Decision::Inject(Injection {
                patch, warnings, ..
            }) => {
                tracing::debug!(
                    namespace,
                    pod = %pod_name,
                    reason = decided.reason,
                    "injected a pod"
                );
                if !patch.is_empty() {
                    verdict.patch =
                        serde_json::to_vec(&patch).expect("a patch is made of JSON values");
                }
                verdict.warnings = warnings;
            }
            Decision::Skip(reason) if reason.is_surprising() => {
                let note = format!(
                    "pod {pod_name} gets no Bulkhead sidecar ({}): {}",
                    decided.reason,
                    reason.explanation()
                );
                tracing::info!(namespace, pod = %pod_name, reason = decided.reason, "skipped a pod");
                self.tell(request, pod, namespace, "InjectionSkipped", &note);
                verdict.warnings.push(note);
            }
            Decision::Skip(_) => {
                tracing::debug!(namespace, pod = %pod_name, reason = decided.reason, "skipped a pod");
            }
            Decision::Refuse(Refusal { message, .. }) => {
                tracing::info!(
                    namespace,
                    pod = %pod_name,
                    reason = decided.reason,
                    message,
                    "refused a pod"
                );
                let note = format!("pod {pod_name} is refused ({}): {message}", decided.reason);
                self.tell(request, pod, namespace, "InjectionRefused", &note);
                verdict.denied = Some(Denial::invalid(message));
            }
        }
        verdict
    }

    /// An Event, unless nothing is meant to come of the request.
    fn tell(
        &self,
        request: &Request<'_>,
        pod: &Value,
        namespace: &str,
        reason: &'static str,
        note: &str,
    ) {
        if request.dry_run != Some(true) {
            self.notices
                .send(Notice::about(pod, namespace, reason, note.to_owned()));
        }
    }

    fn denied(&self, reason: &'static str, message: String) -> Verdict {
        self.metrics.decided("refuse", reason);
        tracing::info!(reason, message, "refused a review");
        Verdict {
            denied: Some(Denial::bad_request(message)),
            audit: audit("refuse", reason),
            ..Verdict::default()
        }
    }
}

impl Decided {
    fn of(decision: &Decision) -> Self {
        let (decision, reason) = match decision {
            Decision::Inject(injection) => ("inject", injection.reason.as_str()),
            Decision::Skip(reason) => ("skip", reason.as_str()),
            Decision::Refuse(refusal) => ("refuse", refusal.reason.as_str()),
        };
        Self { decision, reason }
    }
}

fn audit(decision: &'static str, reason: &'static str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("decision", decision.to_owned()),
        ("reason", reason.to_owned()),
    ])
}

/// What a review is about.
enum Subject<'a> {
    /// A pod that is being created, as raw JSON.
    Pod(&'a RawValue),
    /// Something that this webhook leaves alone.
    NotOurs {
        reason: &'static str,
        warning: Option<String>,
    },
    /// Perhaps a pod, but not to be understood: letting it through could be
    /// letting it through without a sidecar.
    Unclear(String),
}

fn subject<'a>(request: &Request<'a>) -> Subject<'a> {
    let resource = &request.resource;
    if !(resource.group.is_empty() && resource.resource == "pods") {
        let what = match resource.resource.is_empty() {
            true => "an unnamed resource".to_owned(),
            false => format!("{}.{}", shown(&resource.resource), shown(&resource.group)),
        };
        return Subject::NotOurs {
            reason: "not_a_pod",
            warning: Some(format!(
                "Bulkhead's webhook takes pods only and was asked about {what}: correct the \
                 rules of the MutatingWebhookConfiguration"
            )),
        };
    }
    let is_subresource = request
        .sub_resource
        .as_deref()
        .is_some_and(|name| !name.is_empty());
    if request.operation != "CREATE" || is_subresource {
        return Subject::NotOurs {
            reason: "not_a_creation",
            warning: None,
        };
    }
    let kind = &request.kind;
    if !(kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod") {
        return Subject::Unclear(format!(
            "the AdmissionReview is about pods and says that this one is {:?} of {:?} {:?}, where \
             Pod of v1 is what this webhook understands",
            shown(&kind.kind),
            shown(&kind.group),
            shown(&kind.version)
        ));
    }
    match request.object {
        Some(object) => Subject::Pod(object),
        None => Subject::Unclear("the AdmissionReview creates a pod and has no object".to_owned()),
    }
}

/// Whether an object is a pod by its own word. What it does not say is no
/// objection; the review has said it.
fn is_pod(object: &Value) -> Result<(), String> {
    if !object.is_object() {
        return Err("the object of the AdmissionReview is not a JSON object".to_owned());
    }
    for (field, expected) in [("apiVersion", "v1"), ("kind", "Pod")] {
        match &object[field] {
            Value::Null => {}
            Value::String(said) if said == expected => {}
            said => {
                return Err(format!(
                    "the object of the AdmissionReview has {field} {}, where a pod has {expected}",
                    shown(&said.to_string())
                ));
            }
        }
    }
    Ok(())
}

/// A pod's name for people. One made by a controller has only the beginning
/// of a name when we see it.
struct PodName<'a>(&'a Value);

impl std::fmt::Display for PodName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metadata = &self.0["metadata"];
        match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
            (Some(name), _) => f.write_str(&shown(name)),
            (None, Some(beginning)) => write!(f, "{}*", shown(beginning)),
            (None, None) => f.write_str("(unnamed)"),
        }
    }
}
