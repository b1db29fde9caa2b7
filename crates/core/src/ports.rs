//! Every port that Bulkhead binds: one table, for the programs, the chart and
//! the docs.

/// Outbound traffic of the application, redirected to the proxy.
pub const PROXY_OUTBOUND: u16 = 15001;
/// Inbound traffic of the pod, redirected to the proxy.
pub const PROXY_INBOUND: u16 = 15006;
/// The proxy's `/metrics`, `/ready` and the rewritten application probes.
pub const PROXY_STATUS: u16 = 15020;
/// The proxy's admin endpoint, on loopback only.
pub const PROXY_ADMIN: u16 = 15000;
/// The CA's CSR service, and discovery.
pub const CONTROL_PLANE: u16 = 15012;
/// The admission webhook.
pub const WEBHOOK: u16 = 15017;
/// `/metrics`, `/ready` and `/live` of every control-plane program.
pub const MONITORING: u16 = 15014;

/// The user and group that the proxy runs as. Redirection leaves this user's
/// packets alone, which is what keeps the proxy from calling itself.
pub const PROXY_UID: i64 = 1337;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub number: u16,
    /// The name in pod specs: an IANA service name of at most 15 characters.
    pub name: &'static str,
    pub program: &'static str,
    pub purpose: &'static str,
    pub security: &'static str,
}

/// The table, in the order of the docs.
pub const TABLE: &[Port] = &[
    Port {
        number: PROXY_OUTBOUND,
        name: "bh-outbound",
        program: "proxy",
        purpose: "outbound traffic of the application, redirected",
        security: "as the destination needs",
    },
    Port {
        number: PROXY_INBOUND,
        name: "bh-inbound",
        program: "proxy",
        purpose: "inbound traffic of the pod, redirected",
        security: "mTLS or plaintext, by mode",
    },
    Port {
        number: PROXY_STATUS,
        name: "bh-status",
        program: "proxy",
        purpose: "/metrics, /ready and the rewritten application probes",
        security: "plaintext, read-only",
    },
    Port {
        number: PROXY_ADMIN,
        name: "bh-admin",
        program: "proxy, ca",
        purpose: "proxy: config, certificates, connections, log level, drain; ca: status",
        security: "loopback only",
    },
    Port {
        number: CONTROL_PLANE,
        name: "bh-grpc",
        program: "ca, control",
        purpose: "CSR service and discovery, gRPC",
        security: "server TLS (CSR), mTLS (discovery)",
    },
    Port {
        number: WEBHOOK,
        name: "bh-webhook",
        program: "webhook",
        purpose: "/inject and /validate, called by the API server",
        security: "server TLS",
    },
    Port {
        number: MONITORING,
        name: "bh-monitoring",
        program: "webhook, ca, control",
        purpose: "/metrics, /ready and /live",
        security: "plaintext, read-only",
    },
];

/// Ports inside a meshed pod that belong to the proxy, whatever the
/// application does.
pub const RESERVED_IN_POD: &[u16] = &[PROXY_ADMIN, PROXY_OUTBOUND, PROXY_INBOUND, PROXY_STATUS];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_and_names_are_unique_and_fit_a_pod_spec() {
        let numbers: BTreeSet<_> = TABLE.iter().map(|port| port.number).collect();
        let names: BTreeSet<_> = TABLE.iter().map(|port| port.name).collect();
        assert_eq!((numbers.len(), names.len()), (TABLE.len(), TABLE.len()));
        assert!(TABLE.iter().all(|port| port.name.len() <= 15));
        assert!(RESERVED_IN_POD.iter().all(|port| numbers.contains(port)));
    }
}
