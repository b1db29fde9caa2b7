//! The kernel comes to the same answers as `RedirectConfig`'s functions.

use std::net::SocketAddr;

use bulkhead_core::redirect::RedirectConfig;

use crate::pod::{APPLICATION, FAR_V4, FAR_V6, OUTSIDE_V4, OUTSIDE_V6, POD_V4, POD_V6, Pod};

const PORTS: [u16; 6] = [53, 80, 81, 443, 5432, 8080];

/// What users write, alone and together.
const CONFIGURATIONS: &[&[(&str, &str)]] = &[
    &[],
    &[("INCLUDE_INBOUND_PORTS", "none")],
    &[
        ("INCLUDE_INBOUND_PORTS", "80-443"),
        ("EXCLUDE_INBOUND_PORTS", "81"),
    ],
    &[("EXCLUDE_INBOUND_PORTS", "1-65535")],
    &[("INCLUDE_INBOUND_CIDRS", "192.0.2.0/24")],
    &[
        ("INCLUDE_INBOUND_CIDRS", "2001:db8::/64"),
        ("EXCLUDE_INBOUND_CIDRS", "0.0.0.0/0"),
    ],
    &[
        ("INCLUDE_INBOUND_CIDRS", "0.0.0.0/0,::/0"),
        ("EXCLUDE_INBOUND_CIDRS", "2001:db8::20"),
    ],
    &[("INCLUDE_INBOUND_CIDRS", "none")],
    &[("INCLUDE_OUTBOUND_CIDRS", "none")],
    &[
        ("INCLUDE_OUTBOUND_CIDRS", "none"),
        ("INCLUDE_OUTBOUND_PORTS", "53,80-81"),
    ],
    &[
        ("INCLUDE_OUTBOUND_CIDRS", "198.51.100.0/24,::/0"),
        ("EXCLUDE_OUTBOUND_PORTS", "80,5432"),
    ],
    &[(
        "EXCLUDE_OUTBOUND_CIDRS",
        "192.0.2.20,2001:db8::/32,192.0.2.0/28,192.0.2.16/28",
    )],
    &[
        ("INCLUDE_OUTBOUND_PORTS", "53"),
        ("EXCLUDE_OUTBOUND_PORTS", "53"),
    ],
    &[
        ("INCLUDE_OUTBOUND_PORTS", "53"),
        ("EXCLUDE_OUTBOUND_CIDRS", "2001:db8:f::/48"),
    ],
];

#[test]
fn the_kernel_redirects_just_what_the_configuration_says() {
    let pod = Pod::start(&PORTS);
    for configuration in CONFIGURATIONS {
        let env: Vec<_> = configuration
            .iter()
            .map(|(name, value)| (format!("BULKHEAD_REDIRECT_{name}"), *value))
            .collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (&**name, *value)).collect();
        let config = read(&env);
        pod.init(&env);
        for port in PORTS {
            inbound(&pod, &config, port);
            outbound(&pod, &config, port);
        }
    }
}

fn inbound(pod: &Pod, config: &RedirectConfig, port: u16) {
    for (from, to) in [
        (OUTSIDE_V4, POD_V4),
        (FAR_V4, POD_V4),
        (OUTSIDE_V6, POD_V6),
        (FAR_V6, POD_V6),
    ] {
        let to = SocketAddr::new(to.parse().unwrap(), port).to_string();
        let captured = config.captures_inbound(from.parse().unwrap(), port);
        let answer = pod.called_from(from, &to);
        let expected = if captured { "proxy" } else { "application" };
        assert_eq!(answer.who, expected, "from {from} to {to}: {config:?}");
    }
}

fn outbound(pod: &Pod, config: &RedirectConfig, port: u16) {
    for to in [OUTSIDE_V4, FAR_V4, OUTSIDE_V6, FAR_V6] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let captured = config.captures_outbound(to.ip(), port);
        let answer = pod.call(APPLICATION, &to.to_string());
        let expected = if captured { "proxy" } else { "outside" };
        assert_eq!(answer.who, expected, "to {to}: {config:?}");
    }
}

fn read(env: &[(&str, &str)]) -> RedirectConfig {
    let lookup = |wanted: &str| {
        let found = env.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| (*value).to_owned())
    };
    RedirectConfig::from_env(&lookup).unwrap()
}
