//! Real TLS handshakes between two identities, in memory.

use std::sync::Arc;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::{IdentityError, WorkloadIdentity};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::verifier::PeerError;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

use crate::support::{DAY, HOUR, Mesh, now, trust_domain, workload};

/// The bundle while one root follows another.
fn both_roots(old: &Mesh, new: &Mesh) -> TrustBundle {
    let roots = [&old.root, &new.root].map(|root| root.certificate().clone());
    TrustBundle::new(trust_domain(), Roots::new(roots).unwrap())
}

struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

/// Runs a handshake to its end, and until the client has its tickets.
fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Pair, rustls::Error> {
    let address = ServerName::try_from("192.0.2.1").unwrap();
    let mut pair = Pair {
        client: ClientConnection::new(client, address).unwrap(),
        server: ServerConnection::new(server).unwrap(),
    };
    loop {
        let mut moved = 0;
        let mut wire = Vec::new();
        pair.client.write_tls(&mut wire).unwrap();
        moved += wire.len();
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            pair.server.read_tls(&mut bytes).unwrap();
            pair.server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        pair.server.write_tls(&mut wire).unwrap();
        moved += wire.len();
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            pair.client.read_tls(&mut bytes).unwrap();
            pair.client.process_new_packets()?;
        }
        if moved == 0 {
            assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
            return Ok(pair);
        }
    }
}

fn client_of(identity: &WorkloadIdentity, server: &str) -> Arc<ClientConfig> {
    identity
        .client_config(&workload(server), ["istio"])
        .unwrap()
}

fn server_of(identity: &WorkloadIdentity) -> Arc<ServerConfig> {
    identity.server_config(["istio", "h2"]).unwrap()
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let mesh = Mesh::new();
    let (cart, orders) = (
        mesh.identity(&workload("cart")),
        mesh.identity(&workload("orders")),
    );
    let pair = connect(client_of(&cart, "orders"), server_of(&orders)).unwrap();
    let client = orders.peer_id(&pair.server, now()).unwrap();
    let server = cart.peer_id(&pair.client, now()).unwrap();
    assert_eq!(client.id(), &workload("cart"));
    assert_eq!(server.id(), &workload("orders"));
    assert_eq!(client.not_after(), cart.not_after());
    assert_eq!(pair.server.alpn_protocol(), Some(&b"istio"[..]));
    assert_eq!(pair.server.server_name(), None, "no name is sent in clear");
    assert_eq!(
        pair.server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let exchange = pair.server.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(exchange, rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn a_server_that_proves_another_identity_is_refused_by_name() {
    let mesh = Mesh::new();
    let (cart, orders) = (
        mesh.identity(&workload("cart")),
        mesh.identity(&workload("orders")),
    );
    let error = connect(client_of(&cart, "payments"), server_of(&orders))
        .err()
        .unwrap();
    assert_eq!(
        PeerError::from_tls(&error),
        Some(&PeerError::UnexpectedIdentity {
            expected: workload("payments"),
            actual: workload("orders"),
        })
    );
}

#[test]
fn a_client_of_another_root_or_trust_domain_is_refused() {
    let mesh = Mesh::new();
    let orders = mesh.identity(&workload("orders"));
    let stranger = Mesh::new().identity(&workload("cart"));
    let domain = TrustDomain::new("other.org").unwrap();
    let foreign_id = bulkhead_core::identity::SpiffeId::workload(&domain, "shop", "cart").unwrap();
    let foreign = Mesh::of(&domain).identity(&foreign_id);
    for client in [stranger, foreign] {
        assert!(connect(client_of(&client, "orders"), server_of(&orders)).is_err());
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let orders = mesh.identity(&workload("orders"));
    let config = bulkhead_pki::serving::client_config(mesh.bundle().roots(), []).unwrap();
    // The name check would fail first; look at the server's side alone.
    let address = ServerName::try_from("192.0.2.1").unwrap();
    let mut client = ClientConnection::new(config, address).unwrap();
    let mut server = ServerConnection::new(server_of(&orders)).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut wire = Vec::new();
    server.write_tls(&mut wire).unwrap();
    client.read_tls(&mut wire.as_slice()).unwrap();
    assert!(client.process_new_packets().is_err());
    assert!(server.is_handshaking());
    assert_eq!(
        orders.peer_id(&server, now()),
        Err(PeerError::NoCertificate)
    );
}

#[test]
fn a_resumed_session_still_has_both_identities() {
    let mesh = Mesh::new();
    let (cart, orders) = (
        mesh.identity(&workload("cart")),
        mesh.identity(&workload("orders")),
    );
    let (client, server) = (client_of(&cart, "orders"), server_of(&orders));
    connect(client.clone(), server.clone()).unwrap();
    let again = connect(client, server).unwrap();
    assert_eq!(again.server.handshake_kind(), Some(HandshakeKind::Resumed));
    let peer = orders.peer_id(&again.server, now()).unwrap();
    assert_eq!(peer.id(), &workload("cart"));
    let peer = cart.peer_id(&again.client, now()).unwrap();
    assert_eq!(peer.id(), &workload("orders"));
}

#[test]
fn a_session_is_not_resumed_with_a_renewed_identity() {
    let mesh = Mesh::new();
    let (cart, orders) = (
        mesh.identity(&workload("cart")),
        mesh.identity(&workload("orders")),
    );
    let client = client_of(&cart, "orders");
    connect(client.clone(), server_of(&orders)).unwrap();
    let renewed = mesh.identity(&workload("orders"));
    let pair = connect(client, server_of(&renewed)).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));

    let server = server_of(&orders);
    connect(client_of(&cart, "orders"), server.clone()).unwrap();
    let renewed = mesh.identity(&workload("cart"));
    let pair = connect(client_of(&renewed, "orders"), server).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn a_session_is_not_resumed_with_another_trust_bundle() {
    let (mesh, next) = (Mesh::new(), Mesh::new());
    let (cart, orders) = (
        mesh.identity(&workload("cart")),
        mesh.identity(&workload("orders")),
    );
    let both = both_roots(&mesh, &next);
    let client = client_of(&cart, "orders");
    connect(client.clone(), server_of(&orders)).unwrap();
    let orders = orders.with_bundle(both.clone(), now()).unwrap();
    let pair = connect(client, server_of(&orders)).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));

    let cart = cart.with_bundle(both, now()).unwrap();
    let pair = connect(client_of(&cart, "orders"), server_of(&orders)).unwrap();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn an_identity_with_a_new_root_in_its_bundle_serves_peers_of_both_roots() {
    let (mesh, next) = (Mesh::new(), Mesh::new());
    let both = both_roots(&mesh, &next);
    let old = mesh.identity(&workload("cart"));
    let new = next.identity(&workload("orders"));
    assert!(connect(client_of(&old, "orders"), server_of(&new)).is_err());

    let old = old.with_bundle(both.clone(), now()).unwrap();
    let new = new.with_bundle(both, now()).unwrap();
    connect(client_of(&old, "orders"), server_of(&new)).unwrap();
    connect(client_of(&new, "cart"), server_of(&old)).unwrap();
    assert_eq!(old.signing_root(), mesh.root.certificate());
    assert_eq!(new.signing_root(), next.root.certificate());
    assert_eq!(old.serial(), old.chain().serial());
}

#[test]
fn an_identity_does_not_take_a_bundle_that_its_peers_would_refuse_it_by() {
    let (mesh, next) = (Mesh::new(), Mesh::new());
    let cart = mesh.identity(&workload("cart"));
    let refused = cart.with_bundle(next.bundle(), now());
    assert!(matches!(
        refused,
        Err(IdentityError::Peer(PeerError::Path(_)))
    ));
    let late = cart.with_bundle(both_roots(&mesh, &next), now() + 2 * DAY);
    assert!(matches!(late, Err(IdentityError::Peer(PeerError::Path(_)))));
    let foreign = TrustDomain::new("other.example").unwrap();
    let foreign = TrustBundle::new(foreign, mesh.bundle().roots().clone());
    assert!(cart.with_bundle(foreign, now()).is_err());
}

#[test]
fn a_resumed_peer_whose_certificate_has_expired_meanwhile_is_refused() {
    let mesh = Mesh::new();
    let key = PrivateKey::generate().unwrap();
    let id = workload("cart");
    let chain = mesh
        .intermediate
        .issue_svid(&id, key.public_key(), HOUR, now())
        .unwrap();
    let cart = WorkloadIdentity::new(&id, &key, chain, mesh.bundle(), now()).unwrap();
    let orders = mesh.identity(&workload("orders"));
    let (client, server) = (client_of(&cart, "orders"), server_of(&orders));
    connect(client.clone(), server.clone()).unwrap();
    let again = connect(client, server).unwrap();
    assert!(orders.peer_id(&again.server, now()).is_ok());
    assert_eq!(
        orders.peer_id(&again.server, now() + HOUR + HOUR),
        Err(PeerError::Expired)
    );
    assert!(cart.peer_id(&again.client, now() + HOUR + HOUR).is_ok());
}

#[test]
fn a_server_certificate_with_dns_names_is_no_workload() {
    let mesh = Mesh::new();
    let cart = mesh.identity(&workload("cart"));
    let names = [bulkhead_pki::serving::ServerName::parse("192.0.2.1").unwrap()];
    let serving = mesh.intermediate.issue_serving(&names, DAY, now()).unwrap();
    let server = serving.server_config(["istio"]).unwrap();
    assert!(connect(client_of(&cart, "orders"), server).is_err());
    assert_eq!(mesh.root.trust_domain(), &trust_domain());
}
