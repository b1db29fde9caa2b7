//! What goes over the wire, and what does not.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bulkhead_core::alpn;
use bulkhead_core::reason::Reason;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::commands::demo::http::{self, Connection};
use crate::commands::demo::manifests;
use crate::commands::demo::stage::{Stage, Workloads};
use crate::commands::demo::story::{Proof, expect};
use crate::commands::demo::wire::{self, ServerHello};

/// What must not be readable on the wire.
const SECRET: &str = "card=4111-1111-1111-1111";

pub(super) async fn mtls(stage: &mut Stage) -> anyhow::Result<Proof> {
    let (_, workloads) = stage.workloads().await?;
    let answer = Connection::to(workloads.dial_past_wiretap())
        .await?
        .post("/pay", "text/plain", SECRET)
        .await?;
    let expected = format!("cart-0: POST /pay\n{SECRET}");
    let is_served = answer.status == 200 && answer.body == expected;
    expect(
        is_served,
        "the application to have read the secret",
        answer.shown(),
    )?;

    let recording = workloads.wiretap.recording();
    for (who, bytes) in [
        ("the client", &recording.from_client),
        ("the server", &recording.from_server),
    ] {
        expect(
            !bytes.is_empty(),
            "bytes on the wire",
            format!("none from {who}"),
        )?;
        let leak = [SECRET, "POST /pay", "HTTP/1.1"]
            .into_iter()
            .find(|text| contains(bytes, text.as_bytes()));
        let seen = format!("{:?} from {who}", leak.unwrap_or_default());
        expect(leak.is_none(), "nothing in the clear on the wire", seen)?;
    }
    let offered = wire::offered_protocols(&recording.from_client)?;
    let offers_mesh = offered
        .iter()
        .any(|name| alpn::find(name.as_bytes()).is_some());
    expect(
        offers_mesh,
        "a ClientHello that offers mesh traffic",
        offered.join(", "),
    )?;
    let hello = ServerHello::read(&recording.from_server)
        .context("expected the server to answer with a ServerHello; it did not")?;
    let is_latest = hello.version == Some(wire::TLS_1_3);
    expect(is_latest, "TLS 1.3", format!("{hello:?}"))?;

    let labels = [
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    let status = workloads.cart.addresses.status;
    http::metric_exceeds(status, "istio_requests_total", &labels, 0.0).await?;

    let length = recording.from_client.len() + recording.from_server.len();
    let glimpse = wire::glimpse(&recording.from_client, 16).unwrap_or_default();
    Ok(Proof::new("TLS 1.3, both identities proved, nothing in the clear")
        .with(format!("front sent {SECRET:?}, and cart's application read it"))
        .with(format!(
            "the stranger recorded {length} bytes and found neither that nor any HTTP, but: {glimpse} …"
        ))
        .with(format!("key exchange {}, ALPN {}", hello.group_name(), offered.join(", ")))
        .with(format!("cart's istio_requests_total has {}", labels[0])))
}

pub(super) async fn discovery(stage: &mut Stage) -> anyhow::Result<Proof> {
    const REQUESTS: usize = 8;
    let (_, workloads) = stage.workloads().await?;
    let mut connection = Connection::to(workloads.dial_replicas()).await?;
    let mut answered = BTreeMap::<String, usize>::new();
    for _ in 0..REQUESTS {
        let answer = connection.get("/").await?;
        expect(answer.status == 200, "200 from a replica", answer.shown())?;
        let who = answer.body.split(':').next().unwrap_or_default();
        *answered.entry(who.to_owned()).or_default() += 1;
    }
    let shares = answered.iter().map(|(who, count)| format!("{who} {count}"));
    let shares: Vec<_> = shares.collect();
    expect(
        answered.len() == 2,
        "both replicas to have answered",
        shares.join(", "),
    )?;
    let labels = [
        "destination_service=\"cart.shop.svc.cluster.local\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    let status = workloads.front.addresses.status;
    http::metric_exceeds(status, "istio_requests_total", &labels, 0.0).await?;
    let known = http::metric(status, "bulkhead_discovery_destinations", &[]).await?;
    Ok(
        Proof::new("found when it was dialled, and spread over its pods")
            .with(format!(
                "{REQUESTS} requests to {} on one connection: {}",
                manifests::CART,
                shares.join(", ")
            ))
            .with(format!("front's istio_requests_total has {}", labels[0]))
            .with(format!(
                "front's proxy knows {known} destination: the one that was dialled"
            )),
    )
}

pub(super) async fn permissive_counts_plaintext(stage: &mut Stage) -> anyhow::Result<Proof> {
    const COUNTED: &str = "bulkhead_plaintext_connections_total";
    let (_, workloads) = stage.workloads().await?;
    let status = workloads.cart.addresses.status;
    let label = "source_address=\"127.0.0.1\"";
    let before = http::metric(status, COUNTED, &[label]).await?;
    let port = workloads.permissive_port();
    let answer = http::get(port, "/metrics").await?;
    expect(
        answer.status == 200,
        "200 from the application",
        answer.shown(),
    )?;
    let counted = http::metric_exceeds(status, COUNTED, &[label], before).await?;
    Ok(
        Proof::new("served with 200, and counted by the client's address")
            .with(format!(
                "GET http://{port}/metrics, in plaintext: {}",
                answer.shown()
            ))
            .with(format!("now {}", counted.line)),
    )
}

pub(super) async fn strict_refuses_plaintext(stage: &mut Stage) -> anyhow::Result<Proof> {
    let (_, workloads) = stage.workloads().await?;
    let before = workloads.cart_application.seen();
    let port = workloads.strict_port();
    let answer = http::get(port, "/cart").await?;
    let code = Reason::PlaintextRefused.code();
    let is_refused = answer.status == 403 && answer.reason.as_deref() == Some(code);
    expect(
        is_refused,
        &format!("403 with the reason {code}"),
        answer.shown(),
    )?;
    let names_rule = answer.body.contains("bulkhead.io/mtls-mode");
    expect(names_rule, "an answer that names the rule", &answer.body)?;
    untouched(workloads, before)?;
    let mut proof = Proof::new(format!("403 {code}; the application was not asked")).with(format!(
        "GET http://{port}/cart, in plaintext: {}",
        answer.shown()
    ));
    for line in answer.body.lines() {
        proof = proof.with(line);
    }
    Ok(proof)
}

pub(super) async fn wrong_peer_refused(stage: &mut Stage) -> anyhow::Result<Proof> {
    let (_, workloads) = stage.workloads().await?;
    let before = workloads.cart_application.seen();
    let answer = http::get(workloads.dial_impostor(), "/orders").await?;
    let code = Reason::PeerIdentityMismatch.code();
    let is_refused = answer.status == 503 && answer.reason.as_deref() == Some(code);
    expect(
        is_refused,
        &format!("503 with the reason {code}"),
        answer.shown(),
    )?;
    untouched(workloads, before)?;
    Ok(Proof::new(format!("503 {code}; application not asked"))
        .with("expected there: spiffe://cluster.local/ns/shop/sa/orders")
        .with("proved there, by a valid certificate: spiffe://cluster.local/ns/shop/sa/cart")
        .with(format!("front's application gets {}", answer.shown())))
}

pub(super) async fn own_tls_passes(stage: &mut Stage) -> anyhow::Result<Proof> {
    let (_, workloads) = stage.workloads().await?;
    let own_tls = &workloads.own_tls;
    let roots = Roots::new([own_tls.authority.certificate().clone()])?;
    let tls = serving::client_config(&roots, ["http/1.1"])?;
    let port = workloads.own_tls_port();
    let stream = TcpStream::connect(port).await?;
    let stream = TlsConnector::from(tls)
        .connect(ServerName::from(port.ip()), stream)
        .await
        .context("expected the application's own certificate; the handshake failed")?;
    let presented = stream.get_ref().1.peer_certificates();
    let presented = presented.and_then(<[_]>::first).cloned();
    let own = own_tls.certificate.leaf();
    let is_own = presented.as_ref() == Some(own.der());
    expect(
        is_own,
        "exactly the application's certificate",
        "another one",
    )?;
    let answer = Connection::over(stream, port.to_string())
        .await?
        .get("/db")
        .await?;
    expect(
        answer.status == 200,
        "200 from the application",
        answer.shown(),
    )?;
    Ok(
        Proof::new("the client saw the application's own certificate")
            .with(format!(
                "TLS to {port}, trusting only the application's own CA"
            ))
            .with(format!(
                "presented, and equal byte for byte: serial {}…",
                &own.serial()[..8]
            ))
            .with(format!("GET /db through it: {}", answer.shown())),
    )
}

/// Nothing must have reached cart's application since.
fn untouched(workloads: &Workloads, before: u64) -> anyhow::Result<()> {
    let seen = workloads.cart_application.seen() - before;
    expect(seen == 0, "no request at the application", seen)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
