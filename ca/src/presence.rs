//! All that there is of the CA in the API server, besides the Secret: the Lease,
//! the CertificateAuthority object, the trust bundle, and, where that is switched
//! on, the answers to PodCertificateRequests.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_crds::lease::{self, Held, Holder};
use bulkhead_crds::owner::Owner;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use kube::Client;
use tokio::sync::watch;

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
    clock: Clock,
    drain: drain::Watch,
}

impl Presence {
    /// Begins to follow the object and to try for the Lease; nothing where the
    /// authorities are kept elsewhere than in a Secret.
    pub fn begin(
        config: &Config,
        client: Option<Client>,
        clock: &Clock,
        drain: &drain::Watch,
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
        tokio::spawn(holder.run(drain.clone()));
        let (follower, latest) = Follower::new(client.clone(), namespace, owner);
        let (sender, leads) = watch::channel(false);
        tokio::spawn(lead(held.watch(), follower.are_orders_known(), sender));
        tokio::spawn(follower.run(drain.clone()));
        Some(Self {
            client,
            namespace: namespace.clone(),
            latest,
            held,
            leads,
            clock: clock.clone(),
            drain: drain.clone(),
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
        tokio::spawn(writer.run(self.drain.clone()));
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
            tokio::spawn(signer.run(self.drain.clone()));
        }
    }
}

/// How long those take to adopt a bundle who tell control nothing: a node's proxy
/// gets one with its next certificate; a program without a sidecar reads what
/// kubelet mounts at least as often as a tenth of a certificate's life.
fn silent(config: &Config) -> Option<Duration> {
    let longest = config.lifetimes.max;
    if !config.node_proxies.is_empty() {
        return Some(longest);
    }
    config.pod_certificates.then_some(longest / 10)
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
pub fn publish(
    name: &str,
    config: &Config,
    client: &Client,
    issuer: &Arc<dyn Issuer>,
    metrics: &Metrics,
    drain: &drain::Watch,
) {
    let owner = Owner::named(client.clone(), config.owner.as_deref());
    let publisher = Publisher {
        name: name.to_owned(),
        owner: owner.clone(),
        client: client.clone(),
        document: issuer.bundle_document(),
        metrics: metrics.clone(),
    };
    tokio::spawn(publisher.run(drain.clone()));
    let publisher = ClusterPublisher {
        client: client.clone(),
        owner,
        trust_domain: config.trust_domain.clone(),
        document: issuer.bundle_document(),
        metrics: metrics.clone(),
    };
    tokio::spawn(publisher.run(drain.clone()));
}
