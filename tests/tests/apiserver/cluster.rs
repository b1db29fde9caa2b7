//! A cluster with the webhook in it, as an installation would run it: as a
//! ServiceAccount that may do what the webhook's documentation asks for and
//! nothing else, in Bulkhead's own namespace, behind one address.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::balancer::Balancer;
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected, may};
use bulkhead_webhook::app::{App, Deps};
use bulkhead_webhook::config::Config;
use futures::FutureExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

pub(crate) const SYSTEM_NAMESPACE: &str = "bulkhead-system";
pub(crate) const CONFIGURATION: &str = "bulkhead-injector";
const SERVICE_ACCOUNT: &str = "bulkhead-webhook";

/// How long anything may take that happens by itself.
pub(crate) const SOON: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// An API server, and what stands for the webhook's Service.
pub(crate) struct Cluster {
    server: Server,
    balancer: Balancer,
}

enum Server {
    Own(Box<ApiServer>),
    Shared(&'static ApiServer),
}

impl Cluster {
    /// The cluster of all tests that change nothing of it, with one replica.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        let start = async || {
            let (send, receive) = oneshot::channel();
            // A runtime of its own, because that of a test ends with the test.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
                runtime.block_on(async {
                    let server = Server::Shared(ApiServer::shared().await);
                    let cluster = Self::on(server).await;
                    let _webhook = cluster.start_webhook(&[]).await;
                    let _ = send.send(cluster);
                    pending::<()>().await;
                });
            });
            let cluster = receive.await;
            cluster.expect("the cluster starts; if not, the reason is above")
        };
        SHARED.get_or_init(start).await
    }

    /// A cluster of one's own, without a replica yet.
    pub(crate) async fn start() -> Self {
        let server = ApiServer::start().await.expect("the API server starts");
        Self::on(Server::Own(Box::new(server))).await
    }

    async fn on(server: Server) -> Self {
        let cluster = Self {
            server,
            balancer: Balancer::start().await,
        };
        let client = cluster.client().await;
        // Bulkhead must leave itself alone however its namespace is labelled.
        let labels = [("bulkhead.io/inject", "enabled")];
        let namespace = Namespace::create_named(&client, SYSTEM_NAMESPACE, &labels, &[]).await;
        // The table of the webhook's lib.rs.
        let configurations = "mutatingwebhookconfigurations";
        let admission = "admissionregistration.k8s.io";
        let of_the_cluster = vec![
            may(&["get", "list", "watch"], "", "namespaces", &[]),
            may(
                &["get", "list", "watch", "patch"],
                admission,
                configurations,
                &[CONFIGURATION],
            ),
            may(&["create"], admission, configurations, &[]),
            may(&["create", "patch"], "events.k8s.io", "events", &[]),
            may(
                &["list", "watch"],
                "emergency.bulkhead.io",
                "injectionstops",
                &[],
            ),
            may(
                &["get"],
                "rbac.authorization.k8s.io",
                "clusterroles",
                &[SERVICE_ACCOUNT],
            ),
        ];
        let own = vec![
            may(
                &["get", "list", "watch", "update"],
                "",
                "secrets",
                &["bulkhead-webhook-tls"],
            ),
            may(&["create"], "", "secrets", &[]),
            may(&["create"], "", "pods", &[]),
        ];
        namespace.create_service_account(SERVICE_ACCOUNT).await;
        namespace
            .grant_everywhere(SERVICE_ACCOUNT, of_the_cluster)
            .await;
        namespace.grant_here(SERVICE_ACCOUNT, own).await;
        cluster
    }

    pub(crate) fn server(&self) -> &ApiServer {
        match &self.server {
            Server::Own(server) => server,
            Server::Shared(server) => server,
        }
    }

    /// The administrator.
    pub(crate) async fn client(&self) -> Client {
        self.server().client().await
    }

    /// Starts a replica with these settings over the usual ones, makes it the
    /// only one behind the address, and waits until the API server uses it.
    pub(crate) async fn start_webhook(&self, settings: &[(&str, &str)]) -> App {
        let webhook = self.start_replica(settings).await;
        self.serve_by([webhook.address()]);
        is_ready(&webhook).await;
        let client = self.client().await;
        let labels = [("bulkhead.io/inject", "enabled")];
        let probe = Namespace::create(&client, &labels, &[]).await;
        injects_into(&probe).await;
        assert_eq!(webhook.task_ended().now_or_never(), None);
        webhook
    }

    /// Starts a replica that gets no reviews yet.
    pub(crate) async fn start_replica(&self, settings: &[(&str, &str)]) -> App {
        let namespace = Namespace::existing(&self.client().await, SYSTEM_NAMESPACE);
        let token = namespace.token(SERVICE_ACCOUNT, None, None).await;
        let client = self.server().client_with_token(token).await;
        let config = self.config(settings);
        App::start(config, Deps::cluster(client))
            .await
            .expect("there are free ports on loopback")
    }

    fn config(&self, settings: &[(&str, &str)]) -> Config {
        let url = format!("https://{}", self.balancer.address());
        let usual = [
            (
                "BULKHEAD_WEBHOOK_PROXY_IMAGE",
                "registry.example/bulkhead-proxy:1",
            ),
            ("BULKHEAD_WEBHOOK_ADDRESS", "127.0.0.1:0"),
            ("BULKHEAD_WEBHOOK_MONITORING_ADDRESS", "127.0.0.1:0"),
            ("BULKHEAD_WEBHOOK_URL", url.as_str()),
            ("BULKHEAD_WEBHOOK_ROLLOUT_GRACE", "1s"),
            // Whoever shuts a replica down has taken it out of the balancer.
            ("BULKHEAD_WEBHOOK_LAME_DUCK", "0s"),
        ];
        let all: BTreeMap<_, _> = usual.iter().chain(settings).copied().collect();
        Config::from_lookup(&|name| all.get(name).map(|value| (*value).to_owned()))
            .expect("the test's settings are good")
    }

    /// Puts these replicas behind the address, in place of those before.
    pub(crate) fn serve_by(&self, replicas: impl IntoIterator<Item = SocketAddr>) {
        self.balancer.set(replicas);
    }

    /// The configuration that the webhook registered.
    pub(crate) async fn registration(&self) -> MutatingWebhookConfiguration {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client().await);
        api.get(CONFIGURATION)
            .await
            .expect("the webhook registers itself")
    }
}

/// Waits until a replica says that it is ready.
pub(crate) async fn is_ready(webhook: &App) {
    let readiness = &webhook.monitoring().readiness;
    let said = until(async || readiness.missing().is_empty().then_some(())).await;
    assert!(
        said.is_some(),
        "still waiting for {:?}",
        readiness.missing()
    );
}

/// Waits until pods of a namespace that asks for it are injected: the API
/// server hears of a configuration by a watch of its own.
pub(crate) async fn injects_into(namespace: &Namespace) {
    let (pod, dry_run) = (a_pod("probe").build(), dry_run());
    let injected = until(async || {
        let shown = namespace.api().create(&dry_run, &pod).await;
        shown.is_ok_and(|pod| is_injected(&pod)).then_some(())
    });
    assert!(injected.await.is_some(), "no sidecar within {SOON:?}");
}

/// Creating without storing: what comes back shows what would be stored, and
/// nothing is in the way of the next try.
pub(crate) fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// Asks again and again until there is an answer, but not for ever.
pub(crate) async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let asking = async {
        loop {
            polls.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    timeout(SOON, asking).await.ok()
}

/// The webhook's answers so far, by decision and reason.
pub(crate) fn decisions(webhook: &App) -> BTreeMap<String, u64> {
    let metrics = webhook.monitoring().metrics();
    let lines = metrics.lines().filter_map(|line| {
        let (labels, count) = line
            .strip_prefix("bulkhead_webhook_decisions_total{")?
            .split_once("} ")?;
        Some((labels.to_owned(), count.parse().ok()?))
    });
    lines.collect()
}
