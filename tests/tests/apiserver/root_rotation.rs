//! The rotation of the root, steered and watched by the CA's object. The tests
//! play control: they write what proxies hold.

use std::time::Duration;

use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus, MissingProxy,
    NAME, Phase, Proxies,
};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::until;
use crate::trust_bundle::{Mesh, SYSTEM_NAMESPACE, start_ca};

/// How often control says what proxies hold. The CA relies on what it hears well after
/// each step.
const SAID_AGAIN: Duration = Duration::from_millis(500);

struct World {
    mesh: Mesh,
    api: Api<CertificateAuthority>,
}

impl World {
    async fn start() -> Self {
        let mesh = Mesh::start(&[]).await;
        let api = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
        let world = Self { mesh, api };
        world
            .until("it is settled", |status| {
                status.phase == Some(Phase::Settled)
            })
            .await;
        world
    }

    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&CertificateAuthorityStatus) -> bool,
    ) -> CertificateAuthorityStatus {
        let mut last = None;
        let found = until(async || {
            let found = self.api.get_opt(NAME).await.unwrap();
            last = found.and_then(|found| found.status);
            last.clone().filter(&is_so)
        });
        let found = found.await;
        found.unwrap_or_else(|| panic!("it did not happen that {what}: {last:#?}"))
    }

    async fn order(&self, generation: u32) {
        let order = Patch::Merge(json!({"spec": {"rootGeneration": generation}}));
        self.api
            .patch(NAME, &PatchParams::default(), &order)
            .await
            .unwrap();
    }

    /// Of two proxies so many hold the bundle, and so many are renewed, as was
    /// known so long ago.
    async fn control_says(&self, holding: u32, renewed: u32, ago: Duration) {
        let status = self.until("there is a bundle", |status| {
            status.trust_bundle.is_some() && active(status).is_some()
        });
        let status = status.await;
        let missing = (holding < 2).then(|| MissingProxy {
            pod: "shop/cart-1".to_owned(),
            reason: "it holds another trust bundle".to_owned(),
        });
        let proxies = Proxies {
            total: 2,
            holding,
            renewed,
            summary: format!("{holding}/2"),
            signing_root: active(&status).unwrap(),
            bundle: status.trust_bundle.unwrap().id,
            missing: missing.into_iter().collect(),
            at: Time((Clock::system().now() - ago).try_into().unwrap()),
        };
        let patch = json!({
            "apiVersion": "ca.bulkhead.io/v1alpha1",
            "kind": "CertificateAuthority",
            "status": { "proxies": proxies },
        });
        let control = PatchParams::apply("bulkhead-control").force();
        self.api
            .patch_status(NAME, &control, &Patch::Apply(patch))
            .await
            .unwrap();
    }

    /// The same, while control says that all proxies hold and have what is wanted: as
    /// often as it does so by itself, or oftener.
    async fn until_all_say_so(
        &self,
        what: &str,
        is_so: impl Fn(&CertificateAuthorityStatus) -> bool,
    ) -> CertificateAuthorityStatus {
        let mut again = interval(SAID_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let control = async {
            loop {
                again.tick().await;
                self.control_says(2, 2, Duration::ZERO).await;
            }
        };
        tokio::select! {
            status = self.until(what, is_so) => status,
            () = control => unreachable!("it says so for ever"),
        }
    }

    /// Waits until people have been told these things.
    async fn has_told(&self, reasons: &[&str]) {
        let events: Api<Event> = Api::namespaced(self.mesh.client.clone(), SYSTEM_NAMESPACE);
        let mut told = Vec::new();
        let all = until(async || {
            let list = events.list(&ListParams::default()).await.unwrap();
            told = list
                .items
                .into_iter()
                .filter_map(|event| event.reason)
                .collect();
            let is_told = |reason: &&str| told.iter().any(|told| told == reason);
            reasons.iter().all(is_told).then_some(())
        });
        assert!(
            all.await.is_some(),
            "{reasons:?} were expected, and {told:?} told"
        );
    }
}

/// The fingerprint of the root that signs.
fn active(status: &CertificateAuthorityStatus) -> Option<String> {
    let signs = status.authorities.iter().find(|authority| {
        authority.kind == AuthorityKind::Root && authority.state == AuthorityState::Active
    });
    signs.map(|authority| authority.fingerprint.clone())
}

fn state(status: &CertificateAuthorityStatus, generation: u32) -> Option<AuthorityState> {
    let root = status.authorities.iter().find(|authority| {
        authority.kind == AuthorityKind::Root && authority.generation == generation
    });
    root.map(|root| root.state)
}

#[tokio::test]
async fn a_root_signs_when_every_proxy_holds_it_and_leaves_when_none_needs_it() {
    let world = World::start().await;
    let second = [("BULKHEAD_CA_INSTANCE", "second")];
    let monitoring = Monitoring::default();
    let second = start_ca(&world.mesh.server, &world.mesh.client, &monitoring, &second).await;

    world.control_says(2, 2, Duration::ZERO).await;
    world.order(2).await;
    let published = |status: &CertificateAuthorityStatus| {
        state(status, 2) == Some(AuthorityState::Published)
            && status
                .trust_bundle
                .as_ref()
                .is_some_and(|bundle| bundle.roots == 2)
    };
    world.until("root 2 is published", published).await;
    world.control_says(1, 1, Duration::ZERO).await;
    let waits = |status: &CertificateAuthorityStatus| {
        let message = status.message.as_deref().unwrap_or_default();
        message.contains("1 of 2")
    };
    let waiting = world
        .until("it waits for the one that lacks it", waits)
        .await;
    assert_eq!(waiting.root_generation, Some(1), "root 1 signs on");

    let signs = |status: &CertificateAuthorityStatus| status.root_generation == Some(2);
    world.until_all_say_so("root 2 signs", signs).await;
    world.mesh.has_roots("default").await;
    let settled = |status: &CertificateAuthorityStatus| {
        status.phase == Some(Phase::Settled) && state(status, 1) != Some(AuthorityState::Published)
    };
    let status = world.until_all_say_so("root 1 has left", settled).await;
    assert_eq!(status.trust_bundle.unwrap().roots, 1);
    let same = until(async || {
        let ours = world.mesh.ca.trust_bundle().id();
        (second.trust_bundle().id() == ours).then_some(())
    });
    same.await.expect("every replica has the same bundle");
    world
        .has_told(&["RootPublished", "RootActivated", "RootRetired"])
        .await;
}

#[tokio::test]
async fn while_control_is_away_no_root_begins_to_sign_and_the_rotation_can_be_undone() {
    let world = World::start().await;
    world.order(2).await;
    let published =
        |status: &CertificateAuthorityStatus| state(status, 2) == Some(AuthorityState::Published);
    world.until("root 2 is published", published).await;
    // All of them hold it, as it was ten minutes ago.
    world.control_says(2, 2, Duration::from_secs(600)).await;
    let waits = |status: &CertificateAuthorityStatus| {
        let message = status.message.as_deref().unwrap_or_default();
        message.contains("not known")
    };
    let status = world.until("it says that nobody knows", waits).await;
    assert_eq!(status.root_generation, Some(1));

    world.order(1).await;
    let undone = |status: &CertificateAuthorityStatus| {
        status.phase == Some(Phase::Settled)
            && status.target_generation == Some(1)
            && status
                .trust_bundle
                .as_ref()
                .is_some_and(|bundle| bundle.roots == 1)
    };
    world.until("root 1 is alone again", undone).await;
    world.has_told(&["RotationUndone"]).await;
}
