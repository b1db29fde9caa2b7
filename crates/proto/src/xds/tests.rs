use std::time::{Duration, UNIX_EPOCH};

use prost::Message;
use prost_types::value::Kind;

use super::*;

fn held() -> Held {
    Held {
        bundle: "00112233445566778899aabbccddeeff".into(),
        signing_root: "0123456789abcdef".repeat(4),
        certificate_expires: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn request() -> Request {
    Request {
        node: Some("shop/cart-0".into()),
        held: Some(held()),
        subscribe: vec!["10.0.0.1:80".into()],
        unsubscribe: vec!["10.0.0.2:80".into()],
        known: [("10.0.0.3:80".into(), "7".into())].into(),
        reply: Some(Reply {
            nonce: "3".into(),
            refused: Some("no".into()),
        }),
        ..Request::new(ResourceKind::Destination)
    }
}

#[test]
fn a_request_survives_the_way_over_the_wire() {
    let bare = Request::new(ResourceKind::Inbound);
    let acknowledged = Request {
        reply: Some(Reply {
            nonce: "3".into(),
            refused: None,
        }),
        ..request()
    };
    let only_held = Request {
        held: Some(held()),
        ..Request::new(ResourceKind::Inbound)
    };
    for request in [bare, request(), acknowledged, only_held] {
        let wire = DeltaDiscoveryRequest::from(request.clone());
        assert_eq!(Request::try_from(wire), Ok(request));
    }
}

#[test]
fn a_response_survives_the_way_over_the_wire() {
    let response = Response {
        kind: ResourceKind::Endpoints,
        resources: vec![Versioned {
            name: "shop/cart:80".into(),
            version: "12".into(),
            bytes: vec![],
        }],
        removed: vec!["shop/gone:80".into()],
        nonce: "4".into(),
    };
    let wire = DeltaDiscoveryResponse::from(response.clone());
    assert_eq!(Response::try_from(wire), Ok(response));
}

#[test]
fn requests_have_limits() {
    let with = |change: fn(&mut DeltaDiscoveryRequest)| {
        let mut wire = DeltaDiscoveryRequest::from(request());
        change(&mut wire);
        Request::try_from(wire).unwrap_err()
    };
    with(|wire| wire.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into());
    with(|wire| wire.resource_names_subscribe = vec!["a".repeat(MAX_NAME_LENGTH + 1)]);
    with(|wire| wire.resource_names_subscribe = vec![String::new(); MAX_NAMES]);
    with(|wire| wire.response_nonce = "n".repeat(MAX_TOKEN + 1));
    with(|wire| {
        wire.node = Some(wire::Node {
            id: "n".repeat(MAX_TOKEN + 1),
            ..Default::default()
        })
    });
}

#[test]
fn a_response_whose_resources_are_of_another_kind_is_refused() {
    let mut wire = DeltaDiscoveryResponse::from(Response {
        kind: ResourceKind::Endpoints,
        resources: vec![Versioned {
            name: "shop/cart:80".into(),
            version: "12".into(),
            bytes: vec![],
        }],
        removed: vec![],
        nonce: "4".into(),
    });
    wire.type_url = ResourceKind::Inbound.type_url().into();
    assert!(Response::try_from(wire).is_err());
}

/// The bytes of a subscription as Envoy's own types encode it: the numbers of
/// the fields are a contract with every other client of the protocol.
#[test]
fn the_numbers_of_the_fields_are_envoys() {
    let wire = DeltaDiscoveryRequest::from(Request {
        node: None,
        held: None,
        known: BTreeMap::new(),
        ..request()
    });
    let url = ResourceKind::Destination.type_url();
    let mut expected = vec![2 << 3 | 2, u8::try_from(url.len()).unwrap()];
    expected.extend_from_slice(url.as_bytes());
    for (number, value) in [(3_u8, "10.0.0.1:80"), (4, "10.0.0.2:80"), (6, "3")] {
        expected.extend_from_slice(&[number << 3 | 2, u8::try_from(value.len()).unwrap()]);
        expected.extend_from_slice(value.as_bytes());
    }
    expected.extend_from_slice(&[7 << 3 | 2, 6, 1 << 3, 3, 2 << 3 | 2, 2, b'n', b'o']);
    assert_eq!(wire.encode_to_vec(), expected);
}

#[test]
fn what_a_proxy_holds_goes_under_the_names_that_were_agreed() {
    let wire = DeltaDiscoveryRequest::from(request());
    let fields = wire.node.unwrap().metadata.unwrap().fields;
    let text = |text: &str| Some(Kind::StringValue(text.into()));
    assert_eq!(fields["trust-bundle"].kind, text(&held().bundle));
    assert_eq!(fields["signing-root"].kind, text(&held().signing_root));
    let expires = Some(Kind::NumberValue(1_800_000_000.0));
    assert_eq!(fields["certificate-expires"].kind, expires);
}

#[test]
fn a_client_that_says_nothing_usable_of_what_it_holds_is_served_as_if_it_said_nothing() {
    for (name, value) in [
        ("trust-bundle", Kind::StringValue("NOT HEX".into())),
        ("trust-bundle", Kind::NumberValue(1.0)),
        ("trust-bundle", Kind::StringValue(String::new())),
        ("signing-root", Kind::StringValue("a".repeat(65))),
        ("signing-root", Kind::NullValue(0)),
        ("certificate-expires", Kind::NumberValue(-1.0)),
        ("certificate-expires", Kind::NumberValue(f64::NAN)),
        ("certificate-expires", Kind::NumberValue(f64::INFINITY)),
        ("certificate-expires", Kind::StringValue("1".into())),
    ] {
        let mut wire = DeltaDiscoveryRequest::from(request());
        let metadata = wire.node.as_mut().unwrap().metadata.as_mut().unwrap();
        metadata.fields.insert(name.into(), value.into());
        let expected = Request {
            held: None,
            ..request()
        };
        assert_eq!(Request::try_from(wire), Ok(expected), "{name}");
    }
}
