//! The API server's part: turns manifests into pods as Kubernetes' controllers
//! do, has them reviewed by the webhook, and applies the patch.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_inject::Namespace;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving;
use bulkhead_webhook::app::{App, Deps};
use bulkhead_webhook::config::Config;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::Connection;
use crate::manifest::{self, Stream};

pub(super) const SHOP: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/shop.yaml"
));
pub(super) const BAD_ANNOTATION: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/bad-annotation.yaml"
));

/// The webhook, and somebody who asks it.
pub(super) struct Reviewer {
    app: App,
    connection: Connection,
}

/// A pod that somebody wants to create.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) pod: Value,
}

/// What the webhook says of a pod.
#[derive(Debug)]
pub(super) struct Review {
    pub(super) allowed: bool,
    /// Why, in the word that is also the metric's label.
    pub(super) reason: String,
    /// What whoever wanted the pod is told, where it is refused.
    pub(super) message: String,
    /// How much the patch changes; nothing where there is none.
    pub(super) operations: usize,
    /// What the pod becomes.
    pub(super) pod: Value,
    /// The length of the review that was asked for, in bytes.
    pub(super) asked_bytes: usize,
}

impl Reviewer {
    /// Starts the webhook and connects to it, verifying it by the CA bundle that
    /// it would register with the API server.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let deps = Deps::fixed(vec![namespace_of(SHOP)?]);
        let app = App::start(config()?, deps)
            .await
            .context("starting the webhook failed")?;
        let roots = Roots::from_pem(&app.ca_bundle().await)?;
        let tls = serving::client_config(&roots, ["http/1.1"])?;
        let address = app.address();
        let stream = TcpStream::connect(address).await?;
        let stream = TlsConnector::from(tls)
            .connect(ServerName::from(address.ip()), stream)
            .await
            .context("the webhook's certificate does not verify against its own CA bundle")?;
        let connection = Connection::over(stream, address.to_string()).await?;
        Ok(Self { app, connection })
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}/inject", self.app.address())
    }

    /// The CA bundle by which its clients verify it.
    pub(super) async fn ca_bundle(&self) -> String {
        self.app.ca_bundle().await
    }

    pub(super) async fn review(&mut self, wanted: &Wanted) -> anyhow::Result<Review> {
        let question = admission_review(wanted).to_string();
        let asked_bytes = question.len();
        let answer = self
            .connection
            .post("/inject?timeout=5s", "application/json", question)
            .await
            .context("sending the review to the webhook failed")?;
        let answer: Value = serde_json::from_str(&answer.body)
            .with_context(|| format!("the webhook's answer is no review: {}", answer.shown()))?;
        let response = &answer["response"];
        let mut pod = wanted.pod.clone();
        let mut operations = 0;
        if let Some(patch) = response["patch"].as_str() {
            let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch)?)?;
            operations = patch.0.len();
            json_patch::patch(&mut pod, &patch)
                .context("the webhook's patch does not fit the pod")?;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Review {
            allowed: response["allowed"] == true,
            reason: text(&response["auditAnnotations"]["reason"]),
            message: text(&response["status"]["message"]),
            operations,
            pod,
            asked_bytes,
        })
    }
}

/// The pod that a manifest's object, such as `deployment/cart`, makes.
pub(super) fn wanted(manifests: &str, reference: &str) -> anyhow::Result<Wanted> {
    for value in Stream::parse(manifests)?.values() {
        let mut value = value.clone();
        for mut object in manifest::objects(&mut value) {
            if object.reference() != reference {
                continue;
            }
            let namespace = object.namespace().unwrap_or("default").to_owned();
            let owner = (!object.is_pod()).then(|| object.name().unwrap_or_default().to_owned());
            let template = object.pod_mut().context("it makes no pods")?;
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod"});
            for part in ["metadata", "spec"] {
                pod[part] = template[part].take();
            }
            if let Some(owner) = owner {
                pod["metadata"]["generateName"] = format!("{owner}-").into();
            }
            return Ok(Wanted { namespace, pod });
        }
    }
    anyhow::bail!("the examples have no {reference}")
}

/// As an API server asks (admission.k8s.io/v1).
pub(super) fn admission_review(wanted: &Wanted) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "8f2b6f0e-52c7-4d1c-9a7e-0c9f6f0f4c11",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": wanted.namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": wanted.pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

/// The namespace that is in the manifests itself.
fn namespace_of(manifests: &str) -> anyhow::Result<Namespace> {
    let stream = Stream::parse(manifests)?;
    let value = stream
        .values()
        .find(|value| value["kind"] == "Namespace")
        .context("the examples have no namespace")?;
    let texts = |field: &Value| -> anyhow::Result<_> {
        Ok(serde_json::from_value::<Option<_>>(field.clone())?.unwrap_or_default())
    };
    Ok(Namespace {
        name: value["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        labels: texts(&value["metadata"]["labels"])?,
        annotations: texts(&value["metadata"]["annotations"])?,
    })
}

fn config() -> anyhow::Result<Config> {
    let variables = [
        ("BULKHEAD_WEBHOOK_PROXY_IMAGE", "bulkhead-proxy:demo"),
        ("BULKHEAD_WEBHOOK_ADDRESS", "127.0.0.1:0"),
        ("BULKHEAD_WEBHOOK_MONITORING_ADDRESS", "127.0.0.1:0"),
        ("BULKHEAD_WEBHOOK_URL", "https://127.0.0.1"),
    ];
    let config = Config::from_lookup(&|name| {
        let variable = variables.iter().find(|(known, _)| *known == name)?;
        Some(variable.1.to_owned())
    })?;
    Ok(config)
}
