//! The certificates and keys of a control plane: who may talk to the API
//! server, and what it signs ServiceAccount tokens with.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use jsonwebtoken::EncodingKey;
use kube::config::Kubeconfig;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// What the harness keeps of the credentials that it wrote for the programs.
pub(super) struct Credentials {
    /// A member of `system:masters`, who may do everything.
    pub(super) admin: Kubeconfig,
    /// PKCS #8 in PEM. Whoever holds it can make any ServiceAccount token.
    service_account_key: String,
}

impl Credentials {
    /// Makes new ones for an API server on `port`, and writes them to
    /// `directory` under the names that `tests/kubernetes/control-plane` reads.
    pub(super) fn write(directory: &Path, port: u16) -> Result<Self> {
        let authority = authority()?;
        let server_key = KeyPair::generate()?;
        let server = server_certificate(&server_key, &authority)?;
        let admin = admin_kubeconfig(&authority, port)?;
        let token_key = KeyPair::generate()?;
        let service_account_key = token_key.serialize_pem();

        let files = [
            ("ca.crt", authority.pem()),
            ("api-server.crt", server.pem()),
            ("api-server.key", server_key.serialize_pem()),
            ("service-account.key", service_account_key.clone()),
            ("service-account.pub", token_key.public_key_pem()),
            // JSON is YAML, and needs no second serializer here.
            ("admin.kubeconfig", serde_json::to_string(&admin)?),
        ];
        for (name, content) in files {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(Self {
            admin,
            service_account_key,
        })
    }

    /// Changes the claims of a token and signs it again.
    pub(super) fn resign(&self, token: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        let header = jsonwebtoken::decode_header(token)?;
        let claims = token.split('.').nth(1).context("a JWT has three parts")?;
        let mut claims = serde_json::from_slice(&BASE64_URL.decode(claims)?)?;
        change(&mut claims);
        let key = EncodingKey::from_ec_pem(self.service_account_key.as_bytes())?;
        Ok(jsonwebtoken::encode(&header, &claims, &key)?)
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::new([])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn server_certificate(key: &KeyPair, authority: &Authority) -> Result<Certificate> {
    let mut params = CertificateParams::new(["localhost".to_owned()])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    params
        .subject_alt_names
        .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.signed_by(key, authority)?)
}

/// Kubernetes reads the user of a client certificate from its common name, and
/// the groups from its organizations.
fn admin_kubeconfig(authority: &Authority, port: u16) -> Result<Kubeconfig> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, "admin");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, authority)?;

    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": BASE64.encode(authority.pem()),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": BASE64.encode(certificate.pem()),
            "client-key-data": BASE64.encode(key.serialize_pem()),
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    });
    Ok(serde_json::from_value(kubeconfig)?)
}
