//! AdmissionReview `admission.k8s.io/v1` as it stands on the wire.
//!
//! The envelope is read once and borrows from the request's bytes; the pod in
//! it stays raw text until it is known that somebody wants it. So a pod that
//! cannot be parsed still has a uid to answer to, and a review that is not for
//! us costs no more than a scan.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    #[serde(borrow, default)]
    pub uid: Cow<'a, str>,
    #[serde(borrow, default)]
    pub kind: Kind<'a>,
    #[serde(borrow, default)]
    pub resource: Resource<'a>,
    #[serde(borrow, default)]
    pub sub_resource: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub operation: Cow<'a, str>,
    #[serde(default)]
    pub dry_run: Option<bool>,
    #[serde(borrow, default)]
    pub object: Option<&'a RawValue>,
}

/// A group, version and kind.
#[derive(Debug, Default, Deserialize)]
pub struct Kind<'a> {
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    #[serde(borrow, default)]
    pub version: Cow<'a, str>,
    #[serde(borrow, default)]
    pub kind: Cow<'a, str>,
}

/// A group and resource.
#[derive(Debug, Default, Deserialize)]
pub struct Resource<'a> {
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    #[serde(borrow, default)]
    pub resource: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    request: Option<Request<'a>>,
}

impl<'a> Request<'a> {
    /// Reads the envelope of a review.
    ///
    /// # Errors
    /// Whatever leaves no uid to answer to, or makes the review one of another
    /// API: these can only be answered in HTTP.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        let envelope: Envelope<'a> =
            serde_json::from_slice(body).map_err(|error| ReviewError::Json(error.to_string()))?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            return Err(ReviewError::Type {
                api_version: shown(&envelope.api_version),
                kind: shown(&envelope.kind),
            });
        }
        let request = envelope.request.ok_or(ReviewError::NoRequest)?;
        if request.uid.is_empty() {
            return Err(ReviewError::NoUid);
        }
        Ok(request)
    }
}

/// The beginning of a text that came from the network, for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Why a body is not a review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the body is not an AdmissionReview in JSON: {0}")]
    Json(String),
    #[error(
        "the body is {kind:?} of {api_version:?}; this webhook answers {KIND} of {API_VERSION}, \
         so set admissionReviewVersions to [v1]"
    )]
    Type { api_version: String, kind: String },
    #[error("the AdmissionReview has no request")]
    NoRequest,
    #[error("the AdmissionReview's request has no uid to answer to")]
    NoUid,
}

/// What the API server is told.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Nothing where the pod is allowed.
    pub(crate) denied: Option<Denial>,
    /// The JSON of an RFC 6902 patch; empty where nothing changes.
    pub(crate) patch: Vec<u8>,
    /// Shown by kubectl to whoever made the request.
    pub(crate) warnings: Vec<String>,
    /// Written to the API server's audit log, with the webhook's name before
    /// each key.
    pub(crate) audit: BTreeMap<&'static str, String>,
}

/// Why a pod is not admitted.
#[derive(Debug, Serialize)]
pub(crate) struct Denial {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Denial {
    /// The pod says something that cannot be honoured.
    pub(crate) fn invalid(message: String) -> Self {
        Self {
            code: 422,
            reason: "Invalid",
            message,
        }
    }

    /// The review is for us, and cannot be understood.
    pub(crate) fn bad_request(message: String) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a Denial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<&'static str, String>,
}

impl Verdict {
    /// The AdmissionReview that answers the request of this uid.
    pub(crate) fn to_json(&self, uid: &str) -> Vec<u8> {
        let patched = !self.patch.is_empty();
        let answer = Answer {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid,
                allowed: self.denied.is_none(),
                status: self.denied.as_ref(),
                patch_type: patched.then_some("JSONPatch"),
                patch: patched.then(|| STANDARD.encode(&self.patch)),
                warnings: &self.warnings,
                audit_annotations: &self.audit,
            },
        };
        serde_json::to_vec(&answer).expect("strings and numbers always serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_without_an_answerable_request_is_an_error_that_says_why() {
        for (body, says) in [
            ("", "not an AdmissionReview in JSON"),
            ("[", "not an AdmissionReview in JSON"),
            ("\u{0}", "not an AdmissionReview in JSON"),
            ("{}", "admissionReviewVersions"),
            (
                r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"1"}}"#,
                "v1beta1",
            ),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","kind":"Pod","request":{"uid":"1"}}"#,
                "\"Pod\"",
            ),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
                "no request",
            ),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
                "no uid",
            ),
            (
                r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}"#,
                "not an AdmissionReview in JSON",
            ),
        ] {
            let error = Request::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_pod_nested_to_exhaust_the_stack_leaves_a_uid_to_answer_to() {
        let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
        let body = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",
                "request":{{"uid":"u","object":{deep},"oldObject":{deep}}}}}"#
        );
        let request = Request::parse(body.as_bytes()).unwrap();
        assert_eq!(request.uid, "u");
        assert!(
            serde_json::from_str::<serde_json::Value>(request.object.unwrap().get()).is_err(),
            "the pod itself is beyond the parser's limit"
        );
    }

    #[test]
    fn an_answer_has_a_patch_only_where_something_changes() {
        let plain: serde_json::Value =
            serde_json::from_slice(&Verdict::default().to_json("u")).unwrap();
        assert_eq!(
            plain,
            serde_json::json!({
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {"uid": "u", "allowed": true},
            })
        );
        let patched = Verdict {
            patch: b"[]".to_vec(),
            ..Verdict::default()
        };
        let patched: serde_json::Value = serde_json::from_slice(&patched.to_json("u")).unwrap();
        assert_eq!(patched["response"]["patchType"], "JSONPatch");
        assert_eq!(patched["response"]["patch"], "W10=");
    }
}
