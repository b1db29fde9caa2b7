//! A real Vault in dev mode (`tests/cluster/vault`): in memory, unsealed, with a
//! certificate of its own CA.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config;

/// From nothing to ready takes a second on an idle core. Builds may be running
/// beside the tests.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The token of dev mode, which may do everything.
pub const ROOT_TOKEN: &str = "root-of-the-tests";

/// A running Vault. It ends when this is dropped, and with this process: its
/// standard input is closed.
pub struct Vault {
    address: SocketAddr,
    directory: TempDir,
    root: CertificateDer<'static>,
    _process: Child,
}

impl Vault {
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-vault-")
            .tempdir()
            .context("making a directory for Vault")?;
        let root = write_certificates(&directory).context("making Vault's certificate")?;
        let mut process = Command::new(config::vault()?)
            .args(["-root-token", ROOT_TOKEN])
            .args(["-certificate", "server.crt", "-key", "server.key"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting Vault")?;
        let output = process.stdout.take().context("its output is a pipe")?;
        let mut lines = BufReader::new(output).lines();
        let first = timeout(READY_WITHIN, lines.next_line()).await;
        let Ok(Ok(Some(address))) = first else {
            bail!("Vault did not get ready within {READY_WITHIN:?}");
        };
        Ok(Self {
            address: address.parse().context("its first line is its address")?,
            directory,
            root,
            _process: process,
        })
    }

    /// `https://…`
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The CA of its own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Writes a file beside its own.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("the directory is the test's own");
        path
    }

    /// Does something as root, which must succeed; the answer's `data`, or the
    /// whole of it.
    pub async fn write(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self
            .ask(path, body)
            .await
            .expect("Vault answers while it runs");
        assert!((200..300).contains(&status), "{path}: {status}: {answer}");
        match &answer["data"] {
            Value::Null => answer,
            data => data.clone(),
        }
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::from(self.address.ip());
        let connector = TlsConnector::from(std::sync::Arc::new(config));
        let stream = TokioIo::new(connector.connect(name, stream).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let request = Request::post(format!("/v1/{path}"))
            .header("host", self.address.to_string())
            .header("x-vault-token", ROOT_TOKEN)
            .body(Full::new(Bytes::from(body.to_string())))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

/// A CA and a certificate below it for loopback; the CA's.
fn write_certificates(directory: &TempDir) -> Result<CertificateDer<'static>> {
    let mut params = CertificateParams::new([])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "the CA of Vault's own certificate");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    for (name, text) in [
        ("ca.crt", authority.pem()),
        ("server.crt", server.pem()),
        ("server.key", key.serialize_pem()),
    ] {
        std::fs::write(directory.path().join(name), text)?;
    }
    Ok(authority.der().clone())
}
