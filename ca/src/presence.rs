//! All that there is of the CA in the API server, besides the Secret: the Lease,
//! the CertificateAuthority object, the trust bundle, and, where that is switched
//! on, the answers to PodCertificateRequests.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_crds::lease::{self, Held, Holder};
use bulkhead_crds::owner::Owner;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::tasks::Tasks;
use kube::Client;
use tokio::sync::watch;

use crate::app::Running;
use crate::config::{Config, StoreLocation};
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::pod_certificate::Signer;
use crate::status::{Follower, Latest, ReportedHolders, SpecOrders, Writer};
use crate::trust_bundle::Publisher;
use crate::trust_bundle::cluster::ClusterPublisher;

/// The name of the Lease: whoever holds it rotates.
const LEASE: &str = "bulkhead-ca";

/// The CA in the namespace of its Secret.
pub struct Presence {
    client: Client,
    namespace: String,
    latest: Latest,
    held: Held,
    leads: watch::Receiver<bool>,
    /// Whether another replica would do better with the Lease.
    stands_back: watch::Sender<bool>,
    clock: Clock,
    drain: drain::Watch,
    tasks: Tasks,
}

impl Presence {
    /// Begins to follow the object and to try for the Lease; nothing where the
    /// authorities are kept elsewhere than in a Secret.
    pub(crate) fn begin(
        config: &Config,
        client: Option<Client>,
        clock: &Clock,
        Running { drain, tasks }: Running<'_>,
    ) -> Option<Self> {
        let StoreLocation::Secret { namespace, .. } = &config.store else {
            return None;
        };
        let client = client?;
        let owner = Owner::named(client.clone(), config.owner.as_deref());
        let settings = lease::Settings {
            namespace: namespace.clone(),
            name: LEASE.to_owned(),
            instance: config.instance.clone(),
            owner: owner.clone(),
            clock: clock.clone(),
        };
        let (holder, held) = Holder::new(client.clone(), settings);
        let stands_back = watch::Sender::new(false);
        let holder = holder.standing_back(stands_back.subscribe());
        tasks.spawn("the holder of the lease", holder.run(drain.clone()));
        let (follower, latest) = Follower::new(client.clone(), namespace, owner);
        let (sender, leads) = watch::channel(false);
        tasks.spawn(
            "the look at whether this replica leads",
            lead(held.watch(), follower.are_orders_known(), sender),
        );
        tasks.spawn(
            "the watch of the CertificateAuthority object",
            follower.run(drain.clone()),
        );
        Some(Self {
            client,
            namespace: namespace.clone(),
            latest,
            held,
            leads,
            stands_back,
            clock: clock.clone(),
            drain: drain.clone(),
            tasks: tasks.clone(),
        })
    }

    /// Whether this replica is the one that rotates: it holds the Lease, and knows
    /// what people order.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Which root people want.
    pub fn orders(&self) -> Arc<SpecOrders> {
        Arc::new(SpecOrders::new(self.latest.clone()))
    }

    /// What proxies hold.
    pub fn holders(&self, config: &Config) -> Arc<ReportedHolders> {
        let latest = self.latest.clone();
        let silent = silent(config);
        Arc::new(ReportedHolders::new(latest, self.clock.clone(), silent))
    }

    /// Shows what the issuer is and does, and lets it sign for kubelets.
    pub fn show(&self, config: &Config, issuer: &Arc<dyn Issuer>, metrics: &Metrics) {
        let writer = Writer::new(
            self.client.clone(),
            &self.namespace,
            self.latest.clone(),
            issuer.status(),
            self.held.clone(),
            self.clock.clone(),
        );
        self.tasks
            .spawn("the writer of the status", writer.run(self.drain.clone()));
        self.tasks.spawn(
            "the look at whether another CA is stored",
            stand_back(
                issuer.is_replaced(),
                self.stands_back.clone(),
                self.drain.clone(),
            ),
        );
        if config.pod_certificates {
            let signer = Signer {
                client: self.client.clone(),
                trust_domain: config.trust_domain.clone(),
                lifetimes: config.lifetimes,
                issuer: Arc::clone(issuer),
                held: self.held.clone(),
                clock: self.clock.clone(),
                metrics: metrics.clone(),
            };
            self.tasks.spawn(
                "the signer of PodCertificateRequests",
                signer.run(self.drain.clone()),
            );
        }
    }
}

/// How long those take to adopt a bundle who tell control nothing: a node's proxy
/// gets one with its next certificate, and so does a caller from outside the
/// cluster; a program without a sidecar reads what kubelet mounts at least as often
/// as a tenth of a certificate's life.
fn silent(config: &Config) -> Option<Duration> {
    let longest = config.lifetimes.max;
    let calls_from_outside =
        config.tokens.allow_without_pod || !config.authentication.issuers.is_empty();
    if calls_from_outside || !config.node_proxies.is_empty() {
        return Some(longest);
    }
    config.pod_certificates.then_some(longest / 10)
}

/// Where another CA is stored, whoever signs with that is to take its steps.
async fn stand_back(
    mut replaced: watch::Receiver<bool>,
    stands_back: watch::Sender<bool>,
    mut drain: drain::Watch,
) {
    loop {
        stands_back.send_replace(*replaced.borrow_and_update());
        tokio::select! {
            Ok(()) = replaced.changed() => {}
            () = drain.started() => return,
        }
    }
}

/// Says whether both are so, until one of those who know is gone.
async fn lead(
    mut held: watch::Receiver<bool>,
    mut known: watch::Receiver<bool>,
    leads: watch::Sender<bool>,
) {
    loop {
        let both = *held.borrow_and_update() && *known.borrow_and_update();
        leads.send_if_modified(|leads| std::mem::replace(leads, both) != both);
        let changed = tokio::select! {
            changed = held.changed() => changed,
            changed = known.changed() => changed,
        };
        if changed.is_err() {
            leads.send_replace(false);
            return;
        }
    }
}

/// Begins to publish the trust bundle, under this name in each namespace.
pub(crate) fn publish(
    name: &str,
    config: &Config,
    client: &Client,
    issuer: &Arc<dyn Issuer>,
    metrics: &Metrics,
    Running { drain, tasks }: Running<'_>,
) {
    let owner = Owner::named(client.clone(), config.owner.as_deref());
    let publisher = Publisher {
        name: name.to_owned(),
        owner: owner.clone(),
        client: client.clone(),
        document: issuer.bundle_document(),
        store_seen: issuer.store_seen(),
        replaced: issuer.is_replaced(),
        metrics: metrics.clone(),
    };
    tasks.spawn(
        "the publisher of the trust bundle",
        publisher.run(drain.clone()),
    );
    let publisher = ClusterPublisher {
        client: client.clone(),
        owner,
        trust_domain: config.trust_domain.clone(),
        document: issuer.bundle_document(),
        store_seen: issuer.store_seen(),
        replaced: issuer.is_replaced(),
        metrics: metrics.clone(),
    };
    tasks.spawn(
        "the publisher of the ClusterTrustBundle",
        publisher.run(drain.clone()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Authentication;

    #[test]
    fn callers_that_no_proxy_reports_are_given_time_in_a_rotation() {
        let store = || StoreLocation::Secret {
            namespace: "bulkhead-system".to_owned(),
            name: "bulkhead-ca".to_owned(),
        };
        let usual = || Config::new(store(), Authentication::kubernetes());
        let longest = usual().lifetimes.max;
        assert_eq!(silent(&usual()), None, "sidecars say what they hold");

        let mut without_pod = usual();
        without_pod.tokens.allow_without_pod = true;
        let mut nodes = usual();
        nodes.node_proxies = vec![("istio-system".to_owned(), "ztunnel".to_owned())];
        let outside = Authentication::jwks_file("keys.json", "https://issuer.example");
        let outside = Config::new(store(), outside);
        for config in [without_pod, nodes, outside] {
            assert_eq!(silent(&config), Some(longest));
        }
    }
}
