use prost::Message;

use super::*;

fn request() -> Request {
    Request {
        node: Some("shop/cart-0".into()),
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
    for request in [bare, request(), acknowledged] {
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
