//! A replica of the CA that is behind, and what a later one has published.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::trust_bundle::Publisher;
use bulkhead_ca::trust_bundle::cluster::{ClusterPublisher, SEQUENCE_ANNOTATION};
use bulkhead_core::identity::TrustDomain;
use bulkhead_crds::owner::Owner;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::document::TrustBundleDocument;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::until;
use crate::trust_bundle::{CLUSTER_TRUST_BUNDLE, CONFIG_MAP};

/// One replica's publishers, and what they are told.
struct Replica {
    monitoring: Monitoring,
    document: watch::Sender<Arc<str>>,
    store_seen: watch::Sender<Instant>,
    replaced: watch::Sender<bool>,
    running: drain::Trigger,
}

impl Replica {
    fn start(client: &Client, document: &Arc<str>) -> Self {
        let monitoring = Monitoring::default();
        let metrics = Metrics::new(&monitoring);
        let (running, drain) = drain::channel();
        let replica = Self {
            monitoring,
            document: watch::Sender::new(Arc::clone(document)),
            store_seen: watch::Sender::new(Instant::now()),
            replaced: watch::Sender::new(false),
            running,
        };
        let publisher = Publisher {
            client: client.clone(),
            name: CONFIG_MAP.to_owned(),
            owner: Owner::nobody(),
            document: replica.document.subscribe(),
            store_seen: replica.store_seen.subscribe(),
            replaced: replica.replaced.subscribe(),
            metrics: metrics.clone(),
        };
        tokio::spawn(publisher.run(drain.clone()));
        let publisher = ClusterPublisher {
            client: client.clone(),
            owner: Owner::nobody(),
            trust_domain: trust_domain(),
            document: replica.document.subscribe(),
            store_seen: replica.store_seen.subscribe(),
            replaced: replica.replaced.subscribe(),
            metrics,
        };
        tokio::spawn(publisher.run(drain));
        replica
    }

    async fn stop(self) {
        assert!(!*self.replaced.borrow());
        let outcome = self.running.drain(Duration::from_secs(30)).await;
        assert_eq!(outcome, drain::Outcome::Finished);
    }

    fn metric(&self, name: &str) -> u64 {
        let metrics = self.monitoring.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Waits until it has looked at what is in each of so many namespaces.
    async fn has_looked(&self, namespaces: u64) {
        let looked = until(async || {
            let right = self.metric("bulkhead_ca_trust_bundle_namespaces ");
            (right == namespaces).then_some(())
        });
        looked.await.expect("it looks at every namespace");
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// A bundle of one new root.
fn bundle(sequence: u64) -> Arc<str> {
    let day = Duration::from_secs(24 * 3600);
    let root = Authority::new_root(&trust_domain(), 100 * day, Clock::system().now()).unwrap();
    let document = TrustBundleDocument {
        x509_authorities: vec![root.root().clone()],
        jwt_authorities: Vec::new(),
        sequence,
        refresh_hint: None,
    };
    document.to_json().unwrap().into()
}

/// What is stored, and all versions of it that there were since it was looked at.
struct Stored {
    config_maps: Api<ConfigMap>,
    cluster: Api<DynamicObject>,
}

impl Stored {
    fn of(client: &Client) -> Self {
        let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "ClusterTrustBundle");
        let resource = ApiResource::from_gvk(&kind);
        Self {
            config_maps: Api::namespaced(client.clone(), "default"),
            cluster: Api::all_with(client.clone(), &resource),
        }
    }

    async fn document(&self) -> Option<String> {
        let found = self.config_maps.get_opt(CONFIG_MAP).await.unwrap();
        found?.data?.remove("bundle.json")
    }

    /// The sequence of the whole cluster's.
    async fn sequence(&self) -> Option<String> {
        let found = self.cluster.get_opt(CLUSTER_TRUST_BUNDLE).await.unwrap();
        found?.annotations().get(SEQUENCE_ANNOTATION).cloned()
    }

    async fn become_those(&self, document: &Arc<str>, sequence: &str) {
        let both = until(async || {
            let is_there = self.document().await.as_deref() == Some(document);
            let is_for_all = self.sequence().await.as_deref() == Some(sequence);
            (is_there && is_for_all).then_some(())
        });
        both.await.expect("they are published");
    }

    async fn versions(&self) -> [Option<String>; 2] {
        let (one, other) = (
            self.config_maps.get(CONFIG_MAP).await.unwrap(),
            self.cluster.get(CLUSTER_TRUST_BUNDLE).await.unwrap(),
        );
        [one.resource_version(), other.resource_version()]
    }
}

#[tokio::test]
async fn a_replica_that_is_behind_takes_no_newer_trust_bundle_back() {
    let server = ApiServer::start().await.expect("the API server starts");
    let client = server.client().await;
    let stored = Stored::of(&client);
    let (old, new) = (bundle(5), bundle(6));

    let leading = Replica::start(&client, &new);
    stored.become_those(&new, "6").await;
    Namespace::create_named(&client, "shop", &[], &[]).await;
    let everywhere = async || {
        let written = leading.metric("bulkhead_ca_trust_bundle_writes_total ");
        (written >= 3).then_some(written)
    };
    let namespaces = until(everywhere).await.expect("every namespace has it") - 1;
    leading.has_looked(namespaces).await;
    let before = stored.versions().await;

    // One that has not seen the store since, as far as it says.
    let behind = Replica::start(&client, &old);
    behind.has_looked(namespaces).await;
    assert_eq!(behind.metric("bulkhead_ca_trust_bundle_writes_total "), 0);
    assert_eq!(stored.versions().await, before, "nobody wrote");

    // It comes to know what the other knew, and has nothing to write either.
    behind.document.send_replace(Arc::clone(&new));
    behind.store_seen.send_replace(Instant::now());
    behind.has_looked(namespaces).await;
    let all = [&leading, &behind].map(|it| it.metric("bulkhead_ca_trust_bundle_failures_total "));
    assert_eq!(all, [0, 0]);
    leading.stop().await;

    // What is missing is made, once, whoever does it.
    let deletion = DeleteParams::default();
    stored
        .config_maps
        .delete(CONFIG_MAP, &deletion)
        .await
        .unwrap();
    stored.become_those(&new, "6").await;
}

#[tokio::test]
async fn a_bundle_that_only_says_that_it_is_newer_is_replaced_when_the_store_was_seen() {
    let server = ApiServer::start().await.expect("the API server starts");
    let client = server.client().await;
    let stored = Stored::of(&client);
    let (ours, theirs) = (bundle(5), bundle(u64::MAX));
    let liar = Replica::start(&client, &theirs);
    stored.become_those(&theirs, &u64::MAX.to_string()).await;
    liar.stop().await;

    let replica = Replica::start(&client, &ours);
    let looks = async {
        let mut looks = tokio::time::interval(Duration::from_millis(200));
        loop {
            looks.tick().await;
            replica.store_seen.send_replace(Instant::now());
        }
    };
    tokio::select! {
        () = stored.become_those(&ours, "5") => {}
        () = looks => unreachable!("it looks for ever"),
    }
}
