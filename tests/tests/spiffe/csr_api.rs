//! The CSR API with clients that the project has no part in: Istio's own in Go, and
//! one of Python's gRPC, each with keys and requests of its own library, which
//! verifies what comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_proto::ca::{IstioCertificateService, IstioCertificateServiceServer};
use bulkhead_proto::generated::{IstioCertificateRequest, IstioCertificateResponse};
use bulkhead_proto::retry;
use bulkhead_tests::config::{go_spiffe, py_spiffe};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::process::Command;
use tonic::{Code, Request, Response, Status};

use crate::application::{Application, id};

/// What the client is to ask for.
#[derive(Clone, Debug, Default, Serialize)]
struct Wish {
    key: &'static str,
    uris: Vec<String>,
    dns_names: Vec<&'static str>,
    common_name: &'static str,
    organization: Vec<&'static str>,
    seconds: i64,
    metadata: BTreeMap<&'static str, String>,
    anonymous: bool,
}

/// What came, once the client's own libraries have verified it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    code: i32,
    message: String,
    identity: String,
    seconds: u64,
    milliseconds: u64,
    intermediates: usize,
    roots: usize,
}

/// Where a client finds its CA, the CA's roots, and its own token.
struct Place {
    url: String,
    roots: PathBuf,
    token: PathBuf,
}

impl Place {
    /// The token is that of `shop/cart`.
    fn of(mesh: &Mesh) -> Self {
        let token = mesh.token_path("shop", "cart");
        std::fs::write(&token, mesh.token("shop", "cart").unwrap()).unwrap();
        Self {
            url: format!("https://{}", mesh.ca_address()),
            roots: mesh.roots_path(),
            token,
        }
    }
}

fn go(place: &Place) -> Application {
    start(
        Command::new(go_spiffe().unwrap()),
        Path::new("certify"),
        place,
    )
}

fn python(place: &Place) -> Application {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spiffe/certify.py");
    start(Command::new(py_spiffe().unwrap()), Path::new(script), place)
}

fn start(mut program: Command, first: &Path, place: &Place) -> Application {
    program.arg(first).arg(&place.url);
    program.arg(&place.roots).arg(&place.token);
    Application::start(program)
}

async fn ask(client: &mut Application, wish: &Wish) -> Answer {
    let line = serde_json::to_string(wish).unwrap();
    serde_json::from_str(&client.answers(&line).await).unwrap()
}

fn wish(key: &'static str) -> Wish {
    Wish {
        key,
        seconds: 3600,
        ..Wish::default()
    }
}

#[tokio::test]
async fn istios_own_client_gets_certificates_that_go_accepts() {
    let mesh = Mesh::start().await.unwrap();
    certified(&mut go(&Place::of(&mesh))).await;
}

#[tokio::test]
async fn a_client_in_python_gets_certificates_that_openssl_accepts() {
    let mesh = Mesh::start().await.unwrap();
    certified(&mut python(&Place::of(&mesh))).await;
}

/// Each kind of key, each form of request.
async fn certified(client: &mut Application) {
    let own = || vec![id("cart")];
    let wishes = [
        // As istio-agent asks: its organization has no letters.
        Wish {
            uris: own(),
            organization: vec![""],
            ..wish("rsa-2048")
        },
        Wish {
            uris: own(),
            ..wish("p-256")
        },
        wish("p-384"),
        Wish {
            metadata: BTreeMap::from([
                ("CertSigner", "clusterissuers.example.org/istio".to_owned()),
                ("ClusterID", "Kubernetes".to_owned()),
                ("WorkloadName", "cart".to_owned()),
            ]),
            ..wish("p-256")
        },
        Wish {
            metadata: BTreeMap::from([("ImpersonatedIdentity", id("cart"))]),
            ..wish("p-256")
        },
    ];
    for wish in wishes {
        let answer = ask(client, &wish).await;
        assert_eq!(answer.code, 0, "{wish:?}: {answer:?}");
        assert_eq!(answer.identity, id("cart"), "{wish:?}");
        assert_eq!((answer.intermediates, answer.roots), (1, 1), "{wish:?}");
        let asked = u64::try_from(wish.seconds).unwrap();
        assert!(answer.seconds <= asked, "{wish:?}: {answer:?}");
    }
    // The most that a certificate is valid for, and what it is where nobody says.
    const DAY: u64 = 24 * 3600;
    for (seconds, expected) in [
        (600, 600),
        (10 * 365 * 24 * 3600, DAY),
        (i64::MAX, DAY),
        (0, DAY),
        (-1, DAY),
        (i64::MIN, DAY),
    ] {
        let wish = Wish {
            seconds,
            ..wish("p-256")
        };
        let answer = ask(client, &wish).await;
        assert_eq!(answer.code, 0, "{wish:?}: {answer:?}");
        // However long the call took, it was less than that.
        let expected = expected - 300..=expected;
        assert!(expected.contains(&answer.seconds), "{wish:?}: {answer:?}");
    }
}

#[tokio::test]
async fn istios_own_client_is_refused_with_the_code_that_it_acts_upon() {
    let mesh = Mesh::start().await.unwrap();
    refused(&mut go(&Place::of(&mesh))).await;
}

#[tokio::test]
async fn a_client_in_python_is_refused_with_the_code_that_it_acts_upon() {
    let mesh = Mesh::start().await.unwrap();
    refused(&mut python(&Place::of(&mesh))).await;
}

async fn refused(client: &mut Application) {
    let p256 = || wish("p-256");
    for (code, wish) in [
        (
            Code::Unauthenticated,
            Wish {
                anonymous: true,
                ..p256()
            },
        ),
        (
            Code::PermissionDenied,
            Wish {
                uris: vec![id("pay")],
                ..p256()
            },
        ),
        (
            Code::PermissionDenied,
            Wish {
                uris: vec![id("cart"), id("pay")],
                ..p256()
            },
        ),
        (
            Code::PermissionDenied,
            Wish {
                dns_names: vec!["cart.shop.svc"],
                ..p256()
            },
        ),
        (
            Code::PermissionDenied,
            Wish {
                common_name: "cart",
                ..p256()
            },
        ),
        (
            Code::PermissionDenied,
            Wish {
                metadata: BTreeMap::from([("ImpersonatedIdentity", id("pay"))]),
                ..p256()
            },
        ),
        (Code::InvalidArgument, wish("rsa-1024")),
        (Code::InvalidArgument, wish("p-521")),
    ] {
        let answer = ask(client, &wish).await;
        assert_eq!(Code::from_i32(answer.code), code, "{wish:?}: {answer:?}");
        let opaque = "nothing was issued; the CA's log has the reason, request ";
        assert!(answer.message.starts_with(opaque), "{answer:?}");
        // The connection is as good as before.
        assert_eq!(ask(client, &p256()).await.code, 0);
    }
}

/// A CA that has no time, as often as it was told.
struct BusyCa {
    left: AtomicUsize,
    delay: Duration,
    /// Which attempt gRPC said that each call was; none where it was the first.
    attempts: Arc<Mutex<Vec<Option<String>>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for BusyCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let attempt = request.metadata().get("grpc-previous-rpc-attempts");
        let attempt = attempt.map(|attempt| attempt.to_str().unwrap().to_owned());
        self.attempts.lock().unwrap().push(attempt);
        let left = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        Err(match left {
            Ok(_) => retry::too_busy("come again", self.delay),
            Err(_) => Status::unauthenticated("it has come again"),
        })
    }
}

#[tokio::test]
async fn grpcs_own_retries_obey_the_delay_that_a_busy_ca_names() {
    let delay = Duration::from_millis(300);
    let mesh = Mesh::start().await.unwrap();
    for client in [go, python] {
        let attempts = Arc::default();
        let busy = BusyCa {
            left: AtomicUsize::new(2),
            delay,
            attempts: Arc::clone(&attempts),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Place::of(&mesh)
        };
        let service = TowerToHyperService::new(IstioCertificateServiceServer::new(busy));
        let serving = async {
            let (stream, _) = listener.accept().await.unwrap();
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
        };
        let (mut client, wish) = (client(&place), wish("p-256"));
        let answer = tokio::select! {
            answer = ask(&mut client, &wish) => answer,
            ended = serving => panic!("the client hung up: {ended:?}"),
        };
        assert_eq!(Code::from_i32(answer.code), Code::Unauthenticated);
        let attempts = std::mem::take(&mut *attempts.lock().unwrap());
        let expected = [None, Some("1".to_owned()), Some("2".to_owned())];
        assert_eq!(attempts, expected, "gRPC itself came again");
        // Its own backoff is ten milliseconds.
        assert!(answer.milliseconds >= 600, "{answer:?}");
    }
}
