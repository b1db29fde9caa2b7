//! Certificates of the control plane's own servers.

use std::sync::Arc;

use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::{self, ServerName, ServingAuthority, ServingCertificate, ServingError};
use rustls::{ClientConnection, ServerConnection};

use crate::support::{DAY, HOUR, Mesh, YEAR, now};

fn names(names: &[&str]) -> Vec<ServerName> {
    names
        .iter()
        .map(|name| ServerName::parse(name).unwrap())
        .collect()
}

/// Whether a client that holds `roots` accepts the server under `name`.
fn accepts(roots: &Roots, certificate: &ServingCertificate, name: &str) -> bool {
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let client = serving::client_config(roots, ["h2"]).unwrap();
    let server = certificate.server_config(["h2"]).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&server)).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut wire = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut wire).unwrap();
    }
    let mut bytes = wire.as_slice();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        if client.process_new_packets().is_err() {
            return false;
        }
    }
    !client.is_handshaking()
}

#[test]
fn a_webhook_is_verified_by_its_own_ca_and_by_each_of_its_names() {
    let authority = ServingAuthority::new("webhook", 10 * YEAR, now()).unwrap();
    let roots = Roots::new([authority.certificate().clone()]).unwrap();
    let certificate = authority
        .issue(
            &names(&["hook.system.svc", "127.0.0.1", "::1"]),
            YEAR,
            now(),
        )
        .unwrap();
    assert_eq!(certificate.not_after(), now() + YEAR);
    for name in ["hook.system.svc", "127.0.0.1", "::1"] {
        assert!(accepts(&roots, &certificate, name), "{name}");
    }
    assert!(!accepts(&roots, &certificate, "other.system.svc"));
    assert!(!accepts(&roots, &certificate, "127.0.0.2"));
    let stranger = ServingAuthority::new("webhook", YEAR, now()).unwrap();
    let stranger = Roots::new([stranger.certificate().clone()]).unwrap();
    assert!(!accepts(&stranger, &certificate, "hook.system.svc"));
}

#[test]
fn who_holds_the_meshs_roots_verifies_the_ca_by_name() {
    let mesh = Mesh::new();
    let certificate = mesh
        .intermediate
        .issue_serving(&names(&["ca.system.svc"]), DAY, now())
        .unwrap();
    assert!(accepts(
        mesh.bundle().roots(),
        &certificate,
        "ca.system.svc"
    ));
    assert!(!accepts(
        mesh.bundle().roots(),
        &certificate,
        "x.system.svc"
    ));
}

#[test]
fn a_ca_and_its_certificates_survive_the_way_to_disk_and_back() {
    let authority = ServingAuthority::new("webhook", YEAR, now()).unwrap();
    let certificate = authority.issue(&names(&["a.b"]), DAY, now()).unwrap();
    let again = ServingCertificate::from_pem(
        &certificate.chain_pem(),
        &certificate.key().to_pem().unwrap(),
    )
    .unwrap();
    assert_eq!(again.leaf(), certificate.leaf());
    let again = ServingAuthority::from_pem(
        &authority.certificate().to_pem(),
        &authority.key().to_pem().unwrap(),
    )
    .unwrap();
    let roots = Roots::new([authority.certificate().clone()]).unwrap();
    let issued = again.issue(&names(&["a.b"]), DAY, now()).unwrap();
    assert!(accepts(&roots, &issued, "a.b"));
}

#[test]
fn nothing_outlives_the_ca_that_issued_it_and_an_expired_one_issues_nothing() {
    let authority = ServingAuthority::new("webhook", HOUR, now()).unwrap();
    let certificate = authority.issue(&names(&["a.b"]), DAY, now()).unwrap();
    assert_eq!(certificate.not_after(), authority.certificate().not_after());
    assert!(matches!(
        authority.issue(&names(&["a.b"]), DAY, now() + 2 * HOUR),
        Err(ServingError::NotValid(_))
    ));
}

#[test]
fn files_that_do_not_fit_together_are_refused_with_the_reason() {
    let authority = ServingAuthority::new("webhook", YEAR, now()).unwrap();
    let one = authority.issue(&names(&["a.b"]), DAY, now()).unwrap();
    let two = authority.issue(&names(&["a.b"]), DAY, now()).unwrap();
    let key = two.key().to_pem().unwrap();
    assert!(matches!(
        ServingCertificate::from_pem(&one.chain_pem(), &key),
        Err(ServingError::KeyMismatch)
    ));
    assert!(matches!(
        ServingCertificate::from_pem("", &key),
        Err(ServingError::Empty)
    ));
    assert!(matches!(
        ServingAuthority::from_pem(&one.chain_pem(), &one.key().to_pem().unwrap()),
        Err(ServingError::NotAnAuthority)
    ));
    assert!(matches!(
        authority.issue(&[], DAY, now()),
        Err(ServingError::NoName)
    ));
    for name in ["", "a b", "-", "a..b", "spiffe://a/b"] {
        assert!(ServerName::parse(name).is_err(), "{name:?}");
    }
}
