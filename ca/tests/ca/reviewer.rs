//! An API server that judges tokens when the test lets it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// It believes every token, and takes it for the name of a ServiceAccount of
/// `shop` with one pod.
#[derive(Clone)]
pub(crate) struct Reviewer {
    answers: Arc<Semaphore>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Reviewer {
    /// One that answers nobody yet.
    pub(crate) fn closed() -> Self {
        Self {
            answers: Arc::new(Semaphore::new(0)),
            asked: Arc::default(),
        }
    }

    /// From now on everybody is answered.
    pub(crate) fn open(&self) {
        self.answers.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Whether somebody has asked about this token.
    pub(crate) fn was_asked(&self, token: &str) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.iter().any(|asked| asked == token)
    }

    pub(crate) fn client(&self) -> kube::Client {
        let reviewer = self.clone();
        let answer = tower::service_fn(move |request| {
            let reviewer = reviewer.clone();
            async move { Ok::<_, Infallible>(reviewer.answer(request).await) }
        });
        kube::Client::new(answer, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        if !request.uri().path().ends_with("/tokenreviews") {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let review: Value = serde_json::from_slice(&body).unwrap();
        let token = review["spec"]["token"].as_str().unwrap().to_owned();
        self.asked.lock().unwrap().push(token.clone());
        self.answers.acquire().await.unwrap().forget();
        let answer = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": review["spec"],
            "status": {
                "authenticated": true,
                "audiences": [TOKEN_AUDIENCE],
                "user": {
                    "username": format!("system:serviceaccount:shop:{token}"),
                    "groups": ["system:serviceaccounts"],
                    "extra": {
                        "authentication.kubernetes.io/pod-name": [format!("{token}-0")],
                        "authentication.kubernetes.io/pod-uid": [format!("uid-of-{token}")],
                    },
                },
            },
        });
        Response::new(Full::new(answer.to_string().into()))
    }
}
