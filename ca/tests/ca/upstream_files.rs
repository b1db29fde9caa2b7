//! A CA whose signing certificate is somebody else's, in files that OpenSSL made.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use bulkhead_ca::authenticate::Authenticate as _;
use bulkhead_ca::authenticate::jwks::JwksVerifier;
use bulkhead_ca::config::{UpstreamConfig, UpstreamSource};
use bulkhead_ca::issuer::status::UpstreamSigns;
use bulkhead_ca::node_proxy::Subject;
use bulkhead_ca::upstream::files::Files;
use bulkhead_ca::upstream::{Reason, SignedChain, Upstream, UpstreamError};
use bulkhead_ca::vet::{VettedCsr, vet};
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::csr::{self, ParsedCsr};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::clock::Clock;

use crate::company::{CA, Company, P256};
use crate::support::{Ca, DAY, HOUR, ISSUER, Place, cart, now, request, token_for_cart};

impl Company {
    pub(crate) async fn files(&self, signs: UpstreamSigns) -> Files {
        open(&self.shown(), signs, Clock::system()).await
    }

    /// What is said of the files that are shown now.
    pub(crate) async fn refusal(&self) -> String {
        let files = self.files(UpstreamSigns::Intermediate).await;
        let error = intermediate(&files).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Unusable);
        error.to_string()
    }
}

async fn open(directory: &Path, signs: UpstreamSigns, clock: Clock) -> Files {
    Files::open(directory.to_owned(), default_trust_domain(), signs, clock).await
}

pub(crate) async fn intermediate(
    files: &Files,
) -> Result<(PrivateKey, SignedChain), UpstreamError> {
    let key = PrivateKey::generate().unwrap();
    let signed = files
        .sign_intermediate(&key, &default_trust_domain(), DAY)
        .await?;
    Ok((key, signed))
}

/// The request of `shop/cart`, and its key.
pub(crate) async fn vetted() -> (PrivateKey, VettedCsr) {
    let place = Place::new();
    let config = place.config();
    let verifier = JwksVerifier::open(
        place.issuer.jwks_path().to_owned(),
        ISSUER.to_owned(),
        config.trust_domain,
        config.tokens,
        Clock::system(),
    );
    let token = place.issuer.mint(&token_for_cart(), now()).unwrap();
    let caller = verifier.await.unwrap().authenticate(&token).await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let csr = ParsedCsr::from_pem(&csr::create(&key, Some(&cart())).unwrap()).unwrap();
    (key, vet(&Subject::own(&caller), &csr).unwrap())
}

/// What an intermediate issues is what peers accept.
pub(crate) fn serves_workloads((key, signed): (PrivateKey, SignedChain)) {
    let SignedChain { chain, roots } = signed;
    let authority = Authority::from_parts(&default_trust_domain(), chain, key, &roots).unwrap();
    assert_eq!(Some(authority.root()), roots.certificates().first());
    let key = PrivateKey::generate().unwrap();
    let svid = authority
        .issue_svid(&cart(), key.public_key(), HOUR, now())
        .unwrap();
    let bundle = TrustBundle::new(default_trust_domain(), roots);
    WorkloadIdentity::new(&cart(), &key, svid, bundle, now()).unwrap();
}

async fn serves_leaves(files: &Files) {
    let (key, csr) = vetted().await;
    let signed = files.sign_leaf(&csr, HOUR).await.unwrap();
    let roots = Roots::new([signed.root]).unwrap();
    let bundle = TrustBundle::new(default_trust_domain(), roots);
    WorkloadIdentity::new(&cart(), &key, signed.certificate, bundle, now()).unwrap();
}

#[tokio::test]
async fn the_files_of_a_kubernetes_secret_sign_intermediates_and_leaves() {
    let company = Company::new();
    company.show_mesh();
    let files = company.files(UpstreamSigns::Intermediate).await;
    let (key, signed) = intermediate(&files).await.unwrap();
    assert_eq!(signed.chain.len(), 3, "ours, mesh, upper");
    serves_workloads((key, signed));
    serves_leaves(&company.files(UpstreamSigns::Leaf).await).await;
}

#[tokio::test]
async fn istios_cacerts_are_taken_as_they_are() {
    let company = Company::new();
    company.show("ca-cert.pem", &["mesh.crt"]);
    company.show("ca-key.pem", &["mesh.key"]);
    company.show("root-cert.pem", &["root.crt"]);
    // As Istio's own tools write it, the certificate itself and the root are there.
    for chain in [
        &["mesh.crt", "upper.crt", "root.crt"][..],
        &["mesh.crt", "upper.crt"],
        &["upper.crt"],
    ] {
        company.show("cert-chain.pem", chain);
        company.show_text("ca-crl.pem", "");
        let files = company.files(UpstreamSigns::Intermediate).await;
        serves_workloads(intermediate(&files).await.unwrap());
    }
}

#[tokio::test]
async fn a_root_alone_needs_no_further_file_and_old_forms_of_keys_are_read() {
    let company = Company::new();
    company.show("tls.crt", &["root.crt"]);
    company.openssl("ec -in root.key -out sec1.key");
    company.show("tls.key", &["sec1.key"]);
    let files = company.files(UpstreamSigns::Intermediate).await;
    serves_workloads(intermediate(&files).await.unwrap());

    company.show("tls.crt", &["upper.crt"]);
    company.show("ca.crt", &["root.crt"]);
    company.openssl("rsa -in upper.key -traditional -out pkcs1.key");
    company.show("tls.key", &["pkcs1.key"]);
    let files = company.files(UpstreamSigns::Intermediate).await;
    serves_workloads(intermediate(&files).await.unwrap());
}

#[tokio::test]
async fn comments_and_blank_lines_in_files_do_no_harm() {
    let company = Company::new();
    let certificates = company.read(&["mesh.crt"]);
    let upper = company.read(&["upper.crt"]);
    company.show_text(
        "tls.crt",
        &format!("# mesh\n{certificates}\n\nsubject=upper\r\n{upper}\n\n\n"),
    );
    company.show_text("tls.key", &format!("\n{}\n\n", company.read(&["mesh.key"])));
    company.show_text(
        "ca.crt",
        &format!("# the root\n{}\n", company.read(&["root.crt"])),
    );
    let files = company.files(UpstreamSigns::Intermediate).await;
    serves_workloads(intermediate(&files).await.unwrap());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_with_what_to_do() {
    let company = Company::new();
    let said = company.refusal().await;
    assert!(said.contains("neither tls.crt and tls.key nor"), "{said}");

    company.show_mesh();
    company.show("ca-cert.pem", &["mesh.crt"]);
    let said = company.refusal().await;
    assert!(said.contains("both tls.crt and ca-cert.pem"), "{said}");
    std::fs::remove_file(company.shown().join("ca-cert.pem")).unwrap();

    std::fs::remove_file(company.shown().join("tls.key")).unwrap();
    let said = company.refusal().await;
    assert!(said.contains("tls.key is missing"), "{said}");

    company.show("tls.key", &["upper.key"]);
    let said = company.refusal().await;
    assert!(said.contains("put the signing certificate first"), "{said}");

    company.show_mesh();
    for (name, text) in [
        ("tls.crt", "garbage"),
        (
            "tls.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
        (
            "tls.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ),
        ("ca.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("ca.crt", ""),
    ] {
        company.show_text(name, text);
        let said = company.refusal().await;
        assert!(!said.is_empty() && said.len() < 500, "{name}: {said}");
        company.show_mesh();
    }
    std::fs::write(company.shown().join("tls.crt"), [0xff, 0xfe]).unwrap();
    let said = company.refusal().await;
    assert!(said.contains("it is not text"), "{said}");

    company.show_mesh();
    std::fs::remove_file(company.shown().join("ca.crt")).unwrap();
    let said = company.refusal().await;
    assert!(said.contains("ca.crt is missing"), "{said}");
}

#[tokio::test]
async fn a_ca_that_may_have_nothing_below_it_signs_leaves_and_no_intermediate() {
    let company = Company::new();
    let last = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";
    company.authority("last", P256, Some("root"), last);
    company.show("tls.crt", &["last.crt"]);
    company.show("tls.key", &["last.key"]);
    company.show("ca.crt", &["root.crt"]);
    let said = company.refusal().await;
    assert!(said.contains("keeps an intermediate of its own"), "{said}");
    serves_leaves(&company.files(UpstreamSigns::Leaf).await).await;
}

#[tokio::test]
async fn an_expired_ca_is_refused() {
    let company = Company::new();
    company.show_mesh();
    let later = Clock::stopped_at(now() + 31 * DAY);
    let files = open(&company.shown(), UpstreamSigns::Intermediate, later).await;
    let said = intermediate(&files).await.unwrap_err().to_string();
    assert!(said.contains("expired"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_taken_over_and_half_written_ones_change_nothing() {
    let company = Company::new();
    company.show_mesh();
    let files = company.files(UpstreamSigns::Intermediate).await;
    let unchanged = || tokio::time::timeout(Duration::from_secs(60), files.changed());

    // Written again with the same content, as editors and tools do.
    company.show_mesh();
    assert!(unchanged().await.is_err());

    // Half of a new set: the old one signs on.
    company.authority("next", P256, Some("root"), CA);
    company.show("tls.crt", &["next.crt"]);
    assert!(unchanged().await.is_err());
    let (key, signed) = intermediate(&files).await.unwrap();
    assert_eq!(signed.chain.len(), 3);
    serves_workloads((key, signed));

    company.show("tls.key", &["next.key"]);
    assert!(unchanged().await.is_ok());
    let (key, signed) = intermediate(&files).await.unwrap();
    assert_eq!(signed.chain.len(), 2, "ours, next");
    serves_workloads((key, signed));
}

#[tokio::test(start_paused = true)]
async fn files_that_were_unusable_at_the_start_are_taken_once_they_are_repaired() {
    let company = Company::new();
    let files = company.files(UpstreamSigns::Intermediate).await;
    assert!(intermediate(&files).await.is_err());
    company.show_mesh();
    assert!(
        tokio::time::timeout(Duration::from_secs(60), files.changed())
            .await
            .is_ok()
    );
    serves_workloads(intermediate(&files).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_a_kubelet_replaces_by_moving_a_link_is_followed() {
    let company = Company::new();
    let volume = company.path("volume");
    let publish = |version: &str| {
        let directory = volume.join(version);
        std::fs::create_dir_all(&directory).unwrap();
        for file in std::fs::read_dir(company.shown()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), directory.join(file.file_name())).unwrap();
        }
        let _ = std::fs::remove_file(volume.join("..next"));
        symlink(version, volume.join("..next")).unwrap();
        std::fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
    };
    company.show_mesh();
    publish("..1");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
    }
    let files = open(&volume, UpstreamSigns::Intermediate, Clock::system()).await;
    serves_workloads(intermediate(&files).await.unwrap());

    company.show("tls.crt", &["upper.crt"]);
    company.show("tls.key", &["upper.key"]);
    publish("..2");
    std::fs::remove_dir_all(volume.join("..1")).unwrap();
    assert!(
        tokio::time::timeout(Duration::from_secs(60), files.changed())
            .await
            .is_ok()
    );
    let (_, signed) = intermediate(&files).await.unwrap();
    assert_eq!(signed.chain.len(), 2, "ours, upper");
}

#[tokio::test]
async fn workloads_of_a_ca_below_a_companys_trust_the_companys_root() {
    let company = Company::new();
    company.show_mesh();
    let ca = Ca::start_with(|config| {
        config.upstream = Some(UpstreamConfig {
            source: UpstreamSource::Files(company.shown()),
            signs: UpstreamSigns::Intermediate,
            roots_file: None,
        });
    })
    .await;
    let (key, wish) = request(Some(&cart()));
    let token = ca.token(&token_for_cart());
    let answer = ca.call(Some(&token), wish).await.unwrap();
    let svid = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    assert_eq!(svid.intermediates().len(), 3, "ours, mesh, upper");
    let bundle = TrustBundle::from_pem(default_trust_domain(), &company.read(&["root.crt"]));
    WorkloadIdentity::new(&cart(), &key, svid, bundle.unwrap(), now()).unwrap();
}
