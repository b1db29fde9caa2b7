//! What runs in the pods of a test: servers, clients, load.
//!
//! All are the program `workload` (`tests/workload`), in Deployments as a person
//! would write them, without a word about the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::api::{ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::exec::{Output, exec};
use super::{SOON, is_ready, until};
use crate::namespace::Namespace;

/// The image of the program `workload`, as `scripts/images` makes it.
pub const WORKLOAD_IMAGE: &str =
    concat!("ghcr.io/bulkhead/test-workload:", env!("CARGO_PKG_VERSION"));
/// The container in which the application runs.
pub const APP_CONTAINER: &str = "app";

pub const HTTP_PORT: u16 = 8080;
pub const HTTP2_PORT: u16 = 8081;
pub const TCP_ECHO_PORT: u16 = 9000;
/// The server speaks first here, as MySQL's and SMTP's do.
pub const GREETING_PORT: u16 = 9001;
pub const GRPC_PORT: u16 = 9002;
/// Where a load generator says what it has counted.
const COUNTS_PORT: u16 = 9090;
/// The status port of every sidecar, which is never redirected.
const STATUS_PORT: u16 = bulkhead_core::ports::PROXY_STATUS;

const POLL: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A server that listens on every port above, with a Service in front of it.
pub fn server(name: &str) -> AppBuilder {
    let args = [
        ("--http", HTTP_PORT),
        ("--h2c", HTTP2_PORT),
        ("--tcp-echo", TCP_ECHO_PORT),
        ("--server-first", GREETING_PORT),
        ("--grpc-health", GRPC_PORT),
    ];
    let args = args
        .iter()
        .flat_map(|(flag, port)| [(*flag).to_owned(), port.to_string()]);
    AppBuilder::new(name, ["serve".to_owned()].into_iter().chain(args).collect())
}

/// A pod in which a test runs one-off requests: a server nobody calls.
pub fn client(name: &str) -> AppBuilder {
    server(name)
}

/// A Deployment and a Service that are being put together.
pub struct AppBuilder {
    name: String,
    container: Value,
    labels: Value,
    annotations: Value,
    spec: Value,
    replicas: u32,
    headless: bool,
}

impl AppBuilder {
    fn new(name: &str, args: Vec<String>) -> Self {
        let port = |name: &str, number: u16| json!({"name": name, "containerPort": number});
        Self {
            name: name.to_owned(),
            container: json!({
                "name": APP_CONTAINER,
                "image": WORKLOAD_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": args,
                "ports": [
                    port("http", HTTP_PORT), port("h2c", HTTP2_PORT), port("echo", TCP_ECHO_PORT),
                    port("greeting", GREETING_PORT), port("grpc", GRPC_PORT),
                ],
                "readinessProbe": {
                    "httpGet": {"path": "/health", "port": "http"},
                    "periodSeconds": 1,
                },
            }),
            labels: json!({"app": name}),
            annotations: json!({}),
            spec: json!({"terminationGracePeriodSeconds": 20}),
            replicas: 1,
            headless: false,
        }
    }

    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// Gives the Service no address of its own.
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// Labels of the pods.
    pub fn labels(mut self, labels: &[(&str, &str)]) -> Self {
        extend(&mut self.labels, pairs(labels));
        self
    }

    /// Annotations of the pods.
    pub fn annotations(mut self, annotations: &[(&str, &str)]) -> Self {
        extend(&mut self.annotations, pairs(annotations));
        self
    }

    /// Fields of the application's container, over those that are there.
    pub fn container(mut self, fields: Value) -> Self {
        extend(&mut self.container, fields);
        self
    }

    /// Fields of the pod's spec, over those that are there.
    pub fn spec(mut self, fields: Value) -> Self {
        extend(&mut self.spec, fields);
        self
    }

    /// The template that the Deployment makes pods of.
    pub fn template(&self) -> Value {
        let mut spec = self.spec.clone();
        extend(&mut spec, json!({"containers": [self.container]}));
        json!({
            "metadata": {"labels": self.labels, "annotations": self.annotations},
            "spec": spec,
        })
    }

    /// Makes both objects, and waits for nothing.
    pub async fn create(self, namespace: &Namespace) -> App<'_> {
        let deployment = json!({
            "metadata": {"name": self.name},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": self.template(),
            },
        });
        let port =
            |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": number});
        let mut service = json!({
            "metadata": {"name": self.name},
            "spec": {
                "selector": {"app": self.name},
                "ports": [
                    // By name, so that the mesh has to find the number out.
                    {"name": "http", "port": 80, "targetPort": "http"},
                    port("http-direct", HTTP_PORT), port("http2-direct", HTTP2_PORT),
                    port("tcp-echo", TCP_ECHO_PORT), port("tcp-greeting", GREETING_PORT),
                    port("grpc", GRPC_PORT),
                ],
            },
        });
        if self.headless {
            service["spec"]["clusterIP"] = json!("None");
        }
        let may_create = "the administrator may create what the test wrote";
        let parameters = PostParams::default();
        let service: Service = serde_json::from_value(service).expect("a Service");
        let api = namespace.api::<Service>();
        api.create(&parameters, &service).await.expect(may_create);
        let deployment: Deployment = serde_json::from_value(deployment).expect("a Deployment");
        let api = namespace.api::<Deployment>();
        api.create(&parameters, &deployment)
            .await
            .expect(may_create);
        App {
            namespace,
            name: self.name,
        }
    }

    /// Makes both objects, and waits until every pod is ready.
    pub async fn start(self, namespace: &Namespace) -> App<'_> {
        let listens = self.container["ports"][0].is_object() && !self.headless;
        let app = self.create(namespace).await;
        app.ready().await;
        if listens {
            app.is_served().await;
        }
        app
    }
}

/// A Deployment with a Service of the same name.
pub struct App<'a> {
    namespace: &'a Namespace,
    name: String,
}

impl App<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Service's name in DNS.
    pub fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace.name())
    }

    /// A URL behind the Service.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    pub fn deployments(&self) -> Api<Deployment> {
        self.namespace.api()
    }

    /// The pods that are not on their way out.
    pub async fn pods(&self) -> Vec<Pod> {
        let selector = ListParams::default().labels(&format!("app={}", self.name));
        let pods = self.namespace.api::<Pod>().list(&selector).await;
        let mut pods = pods.expect("the administrator may list pods").items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods
    }

    /// The only pod.
    pub async fn pod(&self) -> Pod {
        let mut pods = self.pods().await;
        assert_eq!(pods.len(), 1, "{} has one replica", self.name);
        pods.remove(0)
    }

    /// Waits until the rollout is complete.
    ///
    /// # Panics
    /// Where it is not in time, with what Kubernetes says of the pods.
    pub async fn ready(&self) {
        let deadline = Instant::now() + SOON;
        let mut polls = interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            let deployment = self.deployments().get(&self.name).await;
            if is_rolled_out(&deployment.expect("the Deployment is there")) {
                return;
            }
            if Instant::now() > deadline {
                panic!("{} is not ready:\n{}", self.name, self.state().await);
            }
        }
    }

    /// Waits until the node's own kube-proxy leads to a pod: it hears of a pod
    /// that is ready a moment after everybody who looks at the pod, and turns
    /// clients without a sidecar away until then.
    async fn is_served(&self) {
        let service = self.namespace.api::<Service>().get(&self.name).await;
        let spec = service.expect("the Service is there").spec;
        let address = spec.and_then(|spec| spec.cluster_ip);
        let address: std::net::IpAddr = address
            .and_then(|address| address.parse().ok())
            .expect("the Service has an address");
        until("kube-proxy leads to a pod", async || {
            TcpStream::connect((address, HTTP_PORT)).await.ok()
        })
        .await;
    }

    /// Restarts the pods one after the other, as `kubectl rollout restart` does,
    /// and waits until all are ready.
    pub async fn restart(&self) {
        let previous = self.deployments().get(&self.name).await;
        let generation = previous
            .expect("the Deployment is there")
            .metadata
            .generation;
        let annotations = json!({"tests.bulkhead.io/restarts-after": format!("{generation:?}")});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        self.deployments()
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .expect("the administrator may patch");
        self.ready().await;
    }

    /// Runs the program `workload` in the application's container.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let pods = self.pods().await;
        let pod = pods.iter().find(|pod| is_ready(pod)).expect("one is ready");
        let command: Vec<&str> = ["/workload"].iter().chain(arguments).copied().collect();
        exec(
            &self.namespace.api(),
            &pod.name_any(),
            APP_CONTAINER,
            &command,
        )
        .await
    }

    /// One HTTP request from the application's container.
    pub async fn get(&self, url: &str) -> Reply {
        let output = self.run(&["get", url]).await;
        serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("asking for {url} printed {output:?}: {error}"))
    }

    /// What Kubernetes and the containers say, for a failed test.
    async fn state(&self) -> String {
        let mut text = String::new();
        let events = self.namespace.api::<Event>();
        let events = events.list(&ListParams::default()).await;
        for event in events.map(|list| list.items).unwrap_or_default() {
            let object = event.involved_object.name.unwrap_or_default();
            let message = event.message.unwrap_or_default();
            text.push_str(&format!("event: {object}: {message}\n"));
        }
        for pod in self.pods().await {
            let status = serde_json::to_string(&pod.status).unwrap_or_default();
            text.push_str(&format!("{}: {status}\n", pod.name_any()));
            text.push_str(&logs(&self.namespace.api(), &pod).await);
        }
        text
    }
}

/// The last lines of every container of a pod.
pub async fn logs(pods: &Api<Pod>, pod: &Pod) -> String {
    let mut text = String::new();
    let spec = pod.spec.as_ref().expect("a stored pod has a spec");
    let init = spec.init_containers.iter().flatten();
    for container in init.chain(&spec.containers) {
        let parameters = LogParams {
            container: Some(container.name.clone()),
            tail_lines: Some(40),
            ..LogParams::default()
        };
        let lines = pods.logs(&pod.name_any(), &parameters).await;
        let lines = lines.unwrap_or_else(|error| error.to_string());
        text.push_str(&format!("---- {}\n{lines}\n", container.name));
    }
    text
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let Some(status) = &deployment.status else {
        return false;
    };
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas == wanted
        && status.ready_replicas == wanted
        && status.available_replicas == wanted
        && status.replicas == wanted
}

/// What one request came to, as `workload get` prints it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// Absent where there was no answer.
    pub status: Option<u16>,
    pub headers: std::collections::BTreeMap<String, String>,
    pub body: String,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// What a load generator has counted.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
    /// The first failures, with when they ended.
    pub failures: Vec<Value>,
    /// The longest time between two good answers, in milliseconds.
    pub longest_gap_ms: u64,
}

/// Requests at a steady rate, from a pod.
pub struct Load<'a> {
    app: App<'a>,
    address: SocketAddr,
}

impl<'a> Load<'a> {
    /// Starts asking for a URL, and returns when the first answers are good.
    pub async fn start(namespace: &'a Namespace, name: &str, url: &str) -> Self {
        Self::start_with(namespace, name, &[url]).await
    }

    /// The same, with other arguments of `workload load`.
    pub async fn start_with(namespace: &'a Namespace, name: &str, arguments: &[&str]) -> Self {
        let port = COUNTS_PORT.to_string();
        let args = ["load", "--rate", "50", "--listen", &port];
        let args = args.iter().chain(arguments);
        let app = AppBuilder::new(name, args.map(|it| (*it).to_owned()).collect())
            .container(json!({
                "ports": [],
                "readinessProbe": {"httpGet": {"path": "/counts", "port": COUNTS_PORT}, "periodSeconds": 1},
            }))
            // So that the test reads the counts whatever the mesh does.
            .annotations(&[("bulkhead.io/exclude-inbound-ports", &port)])
            .start(namespace)
            .await;
        let address = SocketAddr::new(ip(&app.pod().await), COUNTS_PORT);
        let load = Self { app, address };
        until("the load is answered", async || {
            (load.counts().await.ok > 20).then_some(())
        })
        .await;
        load
    }

    pub async fn counts(&self) -> Counts {
        let reply = get(self.address, "/counts", &[]).await;
        let reply = reply.expect("the load generator answers");
        serde_json::from_str(&reply.body).expect("it writes JSON")
    }

    /// Waits until so many more requests were answered.
    pub async fn goes_on(&self, more: u64) {
        let before = self.counts().await.ok;
        until("the load goes on", async || {
            (self.counts().await.ok >= before + more).then_some(())
        })
        .await;
    }

    /// # Panics
    /// Where a request failed, with what failed.
    pub async fn has_not_failed(&self) {
        let counts = self.counts().await;
        if counts.failed > 0 {
            let state = self.app.state().await;
            panic!("{}: {counts:?}\n{state}", self.app.name);
        }
    }

    pub fn app(&self) -> &App<'a> {
        &self.app
    }
}

/// A request from the test process, which has no sidecar.
///
/// # Errors
/// Where there is no whole answer.
pub async fn get(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<Reply> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = hyper::Request::get(path).header("host", address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        };
        anyhow::Ok(Reply {
            status: Some(head.status.as_u16()),
            headers: head.headers.iter().map(header).collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
            error: None,
        })
    };
    timeout(ANSWER_WITHIN, exchange).await?
}

/// The pod's address.
///
/// # Panics
/// Where it has none yet.
pub fn ip(pod: &Pod) -> std::net::IpAddr {
    let status = pod.status.as_ref().expect("a pod that runs has a status");
    let ip = status
        .pod_ip
        .as_ref()
        .expect("a pod that runs has an address");
    ip.parse().expect("Kubernetes writes addresses")
}

/// What the sidecar of a pod has counted.
pub async fn metrics(pod: &Pod) -> String {
    let address = SocketAddr::new(ip(pod), STATUS_PORT);
    let reply = get(address, "/metrics", &[]).await;
    reply.expect("the status port answers everybody").body
}

/// The sum of the metrics that have this name and these labels.
pub async fn sum(pod: &Pod, name: &str, labels: &[&str]) -> f64 {
    crate::metrics::sum_of(&metrics(pod).await, name, labels)
}

fn extend(object: &mut Value, fields: Value) {
    if let (Value::Object(object), Value::Object(fields)) = (object, fields) {
        object.extend(fields);
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Value {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)));
    Value::Object(pairs.collect())
}
