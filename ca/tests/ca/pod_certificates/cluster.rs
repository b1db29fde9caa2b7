//! An API server with PodCertificateRequests, as far as the CA asks it for anything:
//! every pod that is asked for is there, on the one node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::pem;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

const GROUP: &str = "/apis/certificates.k8s.io/v1beta1";
const NODE: &str = "node-1";

type Answer = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone, Default)]
pub(super) struct ApiServer(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    requests: BTreeMap<String, Value>,
    version: u64,
    /// All that happened to requests, and those who follow it.
    events: Vec<(u64, String)>,
    watches: Vec<UnboundedSender<Bytes>>,
    /// The requests for which an answer came, and whether it was taken.
    answers: Vec<(String, bool)>,
    /// Who is answered by somebody else just before the CA.
    overtaken: Option<String>,
    lease: Option<Value>,
}

impl ApiServer {
    pub(super) fn client(&self) -> kube::Client {
        let server = self.clone();
        let answer = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        kube::Client::new(answer, "default")
    }

    /// A kubelet asks for a pod of this account.
    pub(super) fn asks(&self, name: &str, account: &str) {
        self.asks_otherwise(name, account, &json!({}));
    }

    /// The same, with these fields otherwise.
    pub(super) fn asks_otherwise(&self, name: &str, account: &str, otherwise: &Value) {
        let key = PrivateKey::generate().unwrap();
        let stub = csr::create(&key, None).unwrap();
        let stub = pem::decode(&stub, 10_000).unwrap().remove(0).der;
        let pod = format!("{account}-0");
        let mut spec = json!({
            "signerName": "ca.bulkhead.io/x509-svid",
            "podName": pod,
            "podUID": uid(&pod),
            "serviceAccountName": account,
            "serviceAccountUID": uid(account),
            "nodeName": NODE,
            "stubPKCS10Request": STANDARD.encode(stub.as_slice()),
        });
        for (field, value) in otherwise.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let metadata = json!({"name": name, "namespace": "shop", "uid": uid(name)});
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest",
            "metadata": metadata, "spec": spec,
        });
        self.objects().store(name, "ADDED", request);
    }

    /// Somebody else answers a request, with a condition of this type.
    pub(super) fn somebody_answers(&self, name: &str, what: &str) {
        self.objects().somebody_answers(name, what);
    }

    /// Somebody else will, just before the CA's answer comes.
    pub(super) fn somebody_overtakes(&self, name: &str) {
        self.objects().overtaken = Some(name.to_owned());
    }

    pub(super) fn forgets(&self, name: &str) {
        let mut objects = self.objects();
        let request = objects.requests.remove(name).unwrap();
        objects.tell("DELETED", &request);
    }

    /// The condition of a request that was answered: its type, reason and message.
    pub(super) fn answer_to(&self, name: &str) -> Option<[String; 3]> {
        let objects = self.objects();
        let condition = &objects.requests[name]["status"]["conditions"][0];
        let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        condition
            .is_object()
            .then(|| ["type", "reason", "message"].map(word))
    }

    pub(super) fn certificate_of(&self, name: &str) -> Option<String> {
        let chain = &self.objects().requests[name]["status"]["certificateChain"];
        chain.as_str().map(ToOwned::to_owned)
    }

    /// The requests for which the CA sent an answer, and whether it was taken.
    pub(super) fn answers(&self) -> Vec<(String, bool)> {
        self.objects().answers.clone()
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        let path = parts.uri.path();
        let mut objects = self.objects();
        if path == format!("{GROUP}/podcertificaterequests") && query.contains("watch=true") {
            return objects.watch(query);
        }
        let (code, answer) = match path.strip_prefix(GROUP) {
            Some("") => (StatusCode::OK, kinds()),
            Some("/podcertificaterequests") => (StatusCode::OK, objects.list()),
            Some(below) => objects.patch(below, &body),
            None if path.contains("/leases") => objects.lease(&parts.method, body),
            None => there_is(path),
        };
        let answer = Full::<Bytes>::from(answer.to_string());
        let mut response = Response::new(answer.boxed_unsync());
        *response.status_mut() = code;
        response
    }
}

impl Objects {
    fn store(&mut self, name: &str, event: &str, mut request: Value) {
        self.version += 1;
        request["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.tell(event, &request);
        self.requests.insert(name.to_owned(), request);
    }

    fn tell(&mut self, event: &str, request: &Value) {
        let line = format!("{}\n", json!({"type": event, "object": request}));
        self.watches
            .retain(|watch| watch.unbounded_send(line.clone().into()).is_ok());
        self.events.push((self.version, line));
    }

    fn somebody_answers(&mut self, name: &str, what: &str) {
        let mut request = self.requests[name].clone();
        request["status"] = json!({"conditions": [{
            "type": what, "status": "True", "reason": "Policy", "message": "not here",
            "lastTransitionTime": "2026-11-22T09:00:00Z",
        }]});
        self.store(name, "MODIFIED", request);
    }

    fn list(&self) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequestList",
            "metadata": {"resourceVersion": self.version.to_string()},
            "items": self.requests.values().collect::<Vec<_>>(),
        })
    }

    /// What happened after the version that was seen, and then whatever happens.
    fn watch(&mut self, query: &str) -> Response<Answer> {
        let seen = query.split('&').find_map(|part| {
            let version = part.strip_prefix("resourceVersion=")?;
            version.parse::<u64>().ok()
        });
        let (sender, lines) = unbounded();
        for (_, line) in self.events.iter().filter(|(at, _)| Some(*at) > seen) {
            sender.unbounded_send(line.clone().into()).unwrap();
        }
        self.watches.push(sender);
        let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(line)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    /// The status of a request, by whoever has seen it as it is.
    fn patch(&mut self, below: &str, patch: &Value) -> (StatusCode, Value) {
        let name = below
            .strip_prefix("/namespaces/shop/podcertificaterequests/")
            .and_then(|rest| rest.strip_suffix("/status"))
            .unwrap()
            .to_owned();
        if self.overtaken.take_if(|it| *it == name).is_some() {
            self.somebody_answers(&name, "Denied");
        }
        let Some(mut request) = self.requests.get(&name).cloned() else {
            return failure(StatusCode::NOT_FOUND);
        };
        let seen = &patch["metadata"]["resourceVersion"];
        let is_taken = *seen == request["metadata"]["resourceVersion"];
        self.answers.push((name.clone(), is_taken));
        if !is_taken {
            return failure(StatusCode::CONFLICT);
        }
        request["status"] = patch["status"].clone();
        self.store(&name, "MODIFIED", request.clone());
        (StatusCode::OK, request)
    }

    fn lease(&mut self, method: &Method, lease: Value) -> (StatusCode, Value) {
        if *method != Method::GET {
            self.lease = Some(lease);
        }
        match &self.lease {
            Some(lease) => (StatusCode::OK, lease.clone()),
            None => failure(StatusCode::NOT_FOUND),
        }
    }
}

/// What the API server has in the group.
fn kinds() -> Value {
    json!({
        "apiVersion": "v1", "kind": "APIResourceList",
        "groupVersion": "certificates.k8s.io/v1beta1",
        "resources": [{
            "name": "podcertificaterequests", "singularName": "podcertificaterequest",
            "namespaced": true, "kind": "PodCertificateRequest",
            "verbs": ["list", "watch", "patch"],
        }],
    })
}

/// The pod, or the account, at a path.
fn there_is(path: &str) -> (StatusCode, Value) {
    let mut parts = path.rsplit('/');
    let (name, kind) = (parts.next().unwrap(), parts.next().unwrap());
    let metadata = json!({"name": name, "namespace": "shop", "uid": uid(name)});
    let account = name.trim_end_matches("-0");
    match kind {
        "pods" => {
            let spec = json!({"serviceAccountName": account, "nodeName": NODE, "containers": []});
            (StatusCode::OK, json!({"metadata": metadata, "spec": spec}))
        }
        "serviceaccounts" => (StatusCode::OK, json!({"metadata": metadata})),
        _ => failure(StatusCode::NOT_FOUND),
    }
}

fn uid(name: &str) -> String {
    format!("uid of {name}")
}

fn failure(code: StatusCode) -> (StatusCode, Value) {
    // `NotFound`
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "reason": reason, "message": "", "code": code.as_u16(),
    });
    (code, status)
}
