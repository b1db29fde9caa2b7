//! Rotations with real certificates: an issuer on a real directory, workloads
//! that judge each other with the verifier that they have in production.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::authenticate::jwks::JwksVerifier;
use bulkhead_ca::authenticate::local_issuer::TokenRequest;
use bulkhead_ca::authenticate::{Authenticate, Pod};
use bulkhead_ca::issuer::Issuer;
use bulkhead_ca::issuer::rotating::{IssuerError, RotatingIssuer};
use bulkhead_ca::issuer::status::{AuthorityKind, AuthorityState, Phase};
use bulkhead_ca::node_proxy::Subject;
use bulkhead_ca::rotation::orders::{FileOrders, Order};
use bulkhead_ca::store::directory::Directory;
use bulkhead_ca::store::{Files, Store};
use bulkhead_ca::vet::vet;
use bulkhead_core::sidecar::{TOKEN_AUDIENCE, default_trust_domain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::document::TrustBundleDocument;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::csr::{self, ParsedCsr};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::verifier::{PeerVerifier, Role};
use bulkhead_runtime::clock::Clock;
use zeroize::Zeroizing;

use crate::support::{DAY, HOUR, ISSUER, Place, issuer, now};

/// A CA with two replicas on one directory, and workloads.
struct Mesh {
    place: Place,
    clock: Clock,
    replicas: Vec<Arc<RotatingIssuer>>,
    workloads: Vec<WorkloadIdentity>,
}

impl Mesh {
    async fn new(workloads: usize) -> Self {
        let place = Place::new();
        let clock = Clock::paced_from(now());
        let mut mesh = Self {
            replicas: vec![issuer(&place, &clock).await],
            workloads: Vec::new(),
            place,
            clock,
        };
        for number in 0..workloads {
            let identity = mesh.certify(0, number).await;
            mesh.workloads.push(identity);
        }
        mesh
    }

    /// Authenticates, vets and issues, as the service does.
    async fn certify(&self, replica: usize, number: usize) -> WorkloadIdentity {
        let now = self.clock.now();
        let request = TokenRequest {
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            pod: Some(Pod {
                name: format!("cart-{number}"),
                uid: format!("uid-{number}"),
            }),
            audience: TOKEN_AUDIENCE.to_owned(),
            lifetime: HOUR,
        };
        let token = self.place.issuer.mint(&request, now).unwrap();
        let verifier = JwksVerifier::open(
            self.place.issuer.jwks_path().to_owned(),
            ISSUER.to_owned(),
            default_trust_domain(),
            self.place.config().tokens,
            self.clock.clone(),
        );
        let caller = verifier.await.unwrap().authenticate(&token).await.unwrap();
        let key = PrivateKey::generate().unwrap();
        let csr = ParsedCsr::from_pem(&csr::create(&key, Some(caller.id())).unwrap()).unwrap();
        let vetted = vet(&Subject::own(&caller), &csr).unwrap();
        let issuer = &self.replicas[replica];
        let issued = issuer.issue(&vetted, DAY).await.unwrap();
        let bundle = TrustBundle::from_pem(default_trust_domain(), &issued.roots_pem).unwrap();
        let bundle = bundle.with_sequence(issued.sequence);
        WorkloadIdentity::new(caller.id(), &key, issued.svid, bundle, now).unwrap()
    }

    fn order(&self, root_generation: u64) {
        let order = Order {
            root_generation: Some(root_generation),
            force_generation: None,
        };
        FileOrders::write(&self.place.store(), order).unwrap();
    }

    /// What happens in five seconds: replicas look, workloads read the bundle
    /// and renew where another root signs, or half of the certificate is over.
    async fn step(&mut self) {
        tokio::time::advance(Duration::from_secs(5)).await;
        for replica in &self.replicas {
            replica.look().await.unwrap();
        }
        let published = std::fs::read_to_string(self.place.store().join("bundle.json")).unwrap();
        let document = TrustBundleDocument::from_json(&published).unwrap();
        let bundle = document.trust_bundle(default_trust_domain()).unwrap();
        let now = self.clock.now();
        for number in 0..self.workloads.len() {
            let held = &self.workloads[number];
            let is_later = bundle.sequence() > held.bundle().sequence();
            if is_later {
                self.workloads[number] = held.with_bundle(bundle.clone(), now).unwrap();
            }
            let is_old = now > self.workloads[number].not_before() + DAY / 2;
            // Its next call is how a workload without control reports.
            if is_later || is_old {
                let replica = number % self.replicas.len();
                self.workloads[number] = self.certify(replica, number).await;
            }
        }
        self.check();
    }

    /// Whoever lives verifies whoever lives.
    fn check(&self) {
        let now = self.clock.now();
        for one in &self.workloads {
            let verifier = PeerVerifier::any_member(Arc::new(one.bundle().clone()));
            for other in &self.workloads {
                let chain = other.chain().to_der();
                for role in [Role::Client, Role::Server] {
                    verifier.verify(&chain[0], &chain[1..], role, now).unwrap();
                }
            }
        }
    }

    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            if is_so(self) {
                return;
            }
            self.step().await;
        }
        panic!("{:#?}", self.status());
    }

    fn status(&self) -> Arc<bulkhead_ca::issuer::status::Status> {
        Arc::clone(&self.replicas[0].status().borrow())
    }

    fn has_settled_on(&self, generation: u64) -> bool {
        let status = self.status();
        status.phase == Phase::Settled
            && status.root_generation == generation
            && status.trust_bundle.roots == 1
    }

    /// Everything that is in the store, by name.
    async fn stored(&self) -> Files {
        let directory = Directory::open(self.place.store()).unwrap();
        directory.load().await.unwrap().unwrap().files
    }

    async fn replace(&self, files: &Files) {
        let directory = Directory::open(self.place.store()).unwrap();
        let version = directory.load().await.unwrap().unwrap().version;
        directory.write(files, Some(&version)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_rotation_cuts_nobody_off_and_leaves_nothing_of_the_old_root() {
    let mut mesh = Mesh::new(3).await;
    let before = mesh.stored().await;
    let old = mesh.replicas[0].trust_bundle().roots().certificates()[0].clone();
    mesh.order(2);
    mesh.until(|mesh| mesh.status().trust_bundle.roots == 2)
        .await;
    let both = mesh.replicas[0].trust_bundle();
    assert_eq!(
        both.roots().certificates()[0],
        old,
        "the one that signs is the first"
    );
    mesh.until(|mesh| mesh.status().root_generation == 2).await;
    let turned = mesh.replicas[0].trust_bundle();
    assert_eq!(turned.id(), both.id());
    assert_ne!(turned.roots().certificates()[0], old);
    assert!(turned.sequence() > both.sequence());
    mesh.until(|mesh| mesh.has_settled_on(2)).await;

    let after = mesh.stored().await;
    let names: Vec<&str> = after.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "bundle.json",
            "intermediate-2.crt",
            "intermediate-2.key",
            "jwt-1.key",
            "root-2.crt",
            "root-2.key",
            "roots.pem",
            "state.json"
        ]
    );
    // A new root has a new key, and everything that shows it shows the new one.
    let new = mesh.replicas[0].trust_bundle().roots().certificates()[0].clone();
    assert_ne!(new.public_key(), old.public_key());
    assert_eq!(*after["root-2.crt"], new.to_pem());
    assert_eq!(*after["roots.pem"], new.to_pem());
    let published = |name: &str| std::fs::read_to_string(mesh.place.store().join(name)).unwrap();
    assert_eq!(published("roots.pem"), new.to_pem());
    assert_eq!(published("bundle.json"), *after["bundle.json"]);
    let document = TrustBundleDocument::from_json(&after["bundle.json"]).unwrap();
    assert_eq!(document.x509_authorities, [new]);
    // The old key is nowhere on the disk any more.
    let old_key = secret_line(&before["root-1.key"]);
    for text in texts_below(&mesh.place.store()) {
        assert!(!text.contains(&old_key));
    }
    let status = mesh.status();
    let retired = status
        .authorities
        .iter()
        .find(|authority| authority.kind == AuthorityKind::Root && authority.generation == 1);
    assert_eq!(retired.unwrap().state, AuthorityState::Retired);
}

/// A line of the base64 that no other key has.
fn secret_line(pem: &str) -> String {
    pem.lines().nth(2).unwrap().to_owned()
}

fn texts_below(directory: &std::path::Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            texts.extend(texts_below(&path));
        } else {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_finishes_what_the_last_one_began() {
    // Wherever the last one stopped.
    for steps in [1, 2, 7, 9, 14] {
        let mut mesh = Mesh::new(2).await;
        mesh.order(2);
        for _ in 0..steps {
            mesh.step().await;
        }
        let given_up = mesh.replicas.remove(0);
        drop(given_up);
        mesh.replicas.push(issuer(&mesh.place, &mesh.clock).await);
        // It learns of every workload anew as their certificates come due.
        for _ in 0..30 {
            tokio::time::advance(HOUR).await;
            mesh.step().await;
        }
        mesh.until(|mesh| mesh.has_settled_on(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_undone_while_both_roots_are_trusted() {
    let mut mesh = Mesh::new(2).await;
    let old = mesh.replicas[0].trust_bundle();
    mesh.order(2);
    mesh.until(|mesh| mesh.status().root_generation == 2).await;
    mesh.order(1);
    mesh.until(|mesh| mesh.has_settled_on(1)).await;
    assert_eq!(mesh.replicas[0].trust_bundle().roots(), old.roots());
    assert!(!mesh.stored().await.contains_key("root-2.key"));
}

#[tokio::test(start_paused = true)]
async fn two_replicas_on_an_empty_store_agree_and_both_rotate_as_one() {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let (one, two) = tokio::join!(issuer(&place, &clock), issuer(&place, &clock));
    assert_eq!(one.trust_bundle(), two.trust_bundle());
    let mut mesh = Mesh {
        replicas: vec![one, two],
        workloads: Vec::new(),
        place,
        clock,
    };
    mesh.order(2);
    for _ in 0..40 {
        mesh.step().await;
        let (one, two) = (&mesh.replicas[0], &mesh.replicas[1]);
        let (one_look, two_look) = tokio::join!(one.look(), two.look());
        one_look.unwrap();
        two_look.unwrap();
    }
    assert_eq!(
        mesh.replicas[0].trust_bundle(),
        mesh.replicas[1].trust_bundle()
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_first_version_stored_is_taken_over_with_its_root() {
    let place = Place::new();
    let trust_domain = default_trust_domain();
    let root = Authority::new_root(&trust_domain, 3650 * DAY, now()).unwrap();
    let intermediate = root.new_intermediate(365 * DAY, now()).unwrap();
    let files: Files = [
        ("root.crt", root.certificate().to_pem()),
        ("root.key", root.key().to_pem().unwrap().to_string()),
        ("intermediate.crt", intermediate.certificate().to_pem()),
        (
            "intermediate.key",
            intermediate.key().to_pem().unwrap().to_string(),
        ),
        ("roots.pem", format!("{}\n", root.certificate().to_pem())),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), Zeroizing::new(text)))
    .collect();
    let directory = Directory::open(place.store()).unwrap();
    directory.write(&files, None).await.unwrap();

    let clock = Clock::paced_from(now());
    let issuer = issuer(&place, &clock).await;
    let roots = Roots::new([root.certificate().clone()]).unwrap();
    assert_eq!(*issuer.trust_bundle().roots(), roots);
    let status = issuer.status().borrow().clone();
    let states: BTreeMap<_, _> = status
        .authorities
        .iter()
        .map(|authority| (authority.kind.as_str(), authority.state))
        .collect();
    let active = AuthorityState::Active;
    assert_eq!(
        states,
        [("root", active), ("intermediate", active), ("jwt", active)].into()
    );
    let stored = directory.load().await.unwrap().unwrap().files;
    assert!(stored.contains_key("root-1.key") && !stored.contains_key("root.key"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_vanishes_or_is_spoilt_or_replaced_stops_nothing() {
    let mesh = Mesh::new(1).await;
    let replica = &mesh.replicas[0];
    let (good, bundle) = (mesh.stored().await, replica.trust_bundle());

    let mut garbage = good.clone();
    garbage.insert(
        "intermediate-1.crt".to_owned(),
        Zeroizing::new("garbage".to_owned()),
    );
    mesh.replace(&garbage).await;
    replica.look().await.unwrap_err();
    mesh.certify(0, 7).await;

    // Somebody else's CA, which is in order in itself.
    let other = Mesh::new(0).await;
    mesh.replace(&other.stored().await).await;
    let error = replica.look().await.unwrap_err();
    assert!(matches!(error, IssuerError::Replaced), "{error}");
    let is_replaced = replica.is_replaced();
    assert!(*is_replaced.borrow(), "the other one publishes");
    mesh.certify(0, 8).await;

    let current = mesh.place.store().join("current");
    let target = std::fs::read_link(&current).unwrap();
    std::fs::remove_file(&current).unwrap();
    let error = replica.look().await.unwrap_err();
    assert!(error.to_string().contains("was emptied"), "{error}");
    mesh.certify(0, 9).await;

    std::os::unix::fs::symlink(target, &current).unwrap();
    mesh.replace(&good).await;
    replica.look().await.unwrap();
    assert!(!*is_replaced.borrow());
    assert_eq!(replica.trust_bundle(), bundle);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_no_event_told_of_is_found_by_looking() {
    let mut mesh = Mesh::new(1).await;
    let replica = issuer(&mesh.place, &mesh.clock).await;
    mesh.order(2);
    mesh.until(|mesh| mesh.status().trust_bundle.roots == 2)
        .await;
    assert_eq!(replica.trust_bundle().roots().certificates().len(), 1);
    let (trigger, drain) = bulkhead_runtime::drain::channel();
    let running = tokio::spawn(Arc::clone(&replica).run(drain));
    let mut roots = replica.roots_pem();
    roots.changed().await.unwrap();
    assert_eq!(
        replica.trust_bundle().id(),
        mesh.replicas[0].trust_bundle().id()
    );
    drop(trigger);
    running.abort();
}
