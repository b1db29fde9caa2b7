use std::time::{Duration, UNIX_EPOCH};

use bulkhead_core::discovery::{
    Bypass, BypassPhase, Destination, Endpoint, Endpoints, Inbound, Route, ServicePort,
};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_core::protocol::Protocol;

use super::*;

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        zone: "zone-a".into(),
        workload: "cart".into(),
        identity: Some(SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()),
    }
}

fn samples() -> Vec<Resource> {
    let mut resources = vec![
        Resource::Destination(Destination::default()),
        Resource::Destination(Destination {
            service: Some(ServicePort {
                namespace: "shop".into(),
                name: "cart".into(),
                port: 80,
            }),
            protocol: Protocol::Grpc,
            route: Route::Endpoints("shop/cart:80".parse().unwrap()),
        }),
        Resource::Endpoints(Endpoints {
            endpoints: vec![
                endpoint("10.0.0.1:8080"),
                Endpoint {
                    ready: false,
                    identity: None,
                    ..endpoint("[2001:db8::1]:8080")
                },
            ],
        }),
    ];
    for protocol in Protocol::ALL {
        resources.push(Resource::Destination(Destination {
            service: None,
            protocol,
            route: Route::Endpoint(endpoint("10.0.0.1:8080")),
        }));
    }
    for mode in MtlsMode::ALL {
        resources.push(Resource::Inbound(Inbound {
            policy: InboundPolicy {
                name: "PeerAuthentication shop/default".into(),
                mode,
                port_modes: [(8080, mode), (9090, MtlsMode::Disable)].into(),
            },
        }));
    }
    for phase in BypassPhase::ALL {
        resources.push(Resource::Bypass(Bypass {
            phase,
            reason: "TLS errors since the upgrade".into(),
            by: "alice".into(),
            until: Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        }));
    }
    resources
}

#[test]
fn every_resource_survives_the_way_over_the_wire() {
    for resource in samples() {
        assert_eq!(
            decode(resource.kind(), &encode(&resource)),
            Ok(resource.clone())
        );
    }
}

#[test]
fn bytes_cut_short_never_pass_for_another_policy() {
    for resource in samples() {
        let bytes = encode(&resource);
        for length in 0..bytes.len() {
            // Reading may succeed where a field ends; it must not panic, and an
            // Inbound without its mode must be refused.
            let read = decode(resource.kind(), &bytes[..length]);
            if length == 0 && resource.kind() == ResourceKind::Inbound {
                assert!(read.is_err());
            }
        }
    }
}

#[test]
fn an_inbound_policy_without_a_known_mode_is_refused() {
    for mode in [0, 4, -1] {
        let message = wire::Inbound {
            mode,
            ..Default::default()
        };
        assert_eq!(
            decode(ResourceKind::Inbound, &message.encode_to_vec()),
            Err(ResourceError::Enum {
                field: "mode",
                value: mode
            })
        );
        let message = wire::Inbound {
            mode: 1,
            port_modes: [(80, mode)].into(),
            ..Default::default()
        };
        assert!(decode(ResourceKind::Inbound, &message.encode_to_vec()).is_err());
    }
}

#[test]
fn an_endpoint_that_is_not_quite_right_is_refused() {
    let good = wire::Endpoint::from(&endpoint("10.0.0.1:8080"));
    assert!(Endpoint::try_from(good.clone()).is_ok());
    let bad = |change: fn(&mut wire::Endpoint)| {
        let mut endpoint = good.clone();
        change(&mut endpoint);
        let message = wire::Endpoints {
            endpoints: vec![endpoint],
        };
        decode(ResourceKind::Endpoints, &message.encode_to_vec()).unwrap_err()
    };
    for change in [
        (|endpoint| endpoint.ip = vec![]) as fn(&mut wire::Endpoint),
        |endpoint| endpoint.ip = vec![10, 0, 0],
        |endpoint| endpoint.ip = vec![0; 17],
        |endpoint| endpoint.port = 0,
        |endpoint| endpoint.port = 65_536,
        |endpoint| endpoint.identity = "cart".into(),
        |endpoint| endpoint.zone = "z".repeat(MAX_TEXT + 1),
    ] {
        bad(change);
    }
}

#[test]
fn other_fields_out_of_range_are_refused() {
    let destination = wire::Destination {
        route: Some(wire::destination::Route::Endpoints("cart".into())),
        ..Default::default()
    };
    let protocol = wire::Destination {
        protocol: 17,
        ..Default::default()
    };
    for message in [destination, protocol] {
        assert!(decode(ResourceKind::Destination, &message.encode_to_vec()).is_err());
    }
    let phase = wire::Bypass {
        phase: 3,
        ..Default::default()
    };
    let never = wire::Bypass {
        until: u64::MAX,
        ..Default::default()
    };
    for message in [phase, never] {
        assert!(decode(ResourceKind::Bypass, &message.encode_to_vec()).is_err());
    }
}

#[test]
fn a_bypass_whose_time_has_long_passed_still_has_a_time() {
    let resource = Resource::Bypass(Bypass {
        until: Some(UNIX_EPOCH),
        ..Bypass::default()
    });
    let Ok(Resource::Bypass(read)) = decode(ResourceKind::Bypass, &encode(&resource)) else {
        panic!("a bypass is a bypass");
    };
    assert!(read.until.is_some());
}
