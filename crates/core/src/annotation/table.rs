//! The table. Rows that belong together stand together, in the order of the
//! docs.

use std::time::Duration;

use super::Annotation;
use super::Compatible;
use super::INJECT;
use super::Translate;
use super::inject::parse_inject;
use super::value;
use crate::duration;
use crate::policy::MtlsMode;
use crate::port_set::PortSet;
use crate::resources::Amount;
use crate::sidecar::WORKLOAD_API_PATH;

const SWITCH: &str = "enabled or disabled (also true or false)";
const CPU: &str = "a Kubernetes quantity of CPU, such as 100m or 1.5, or none";
const BYTES: &str = "a Kubernetes quantity of whole bytes from 1Mi, such as 64Mi or 1G, or none";
const PORTS: &str = "ports and ranges with commas between them, such as 25,8000-8100, or none";
const PORTS_OR_ALL: &str = "*, or ports and ranges such as 80,8000-8100, or none";
const CIDRS: &str = "CIDRs with commas between them, such as 10.0.0.0/8,2001:db8::/32, or none";
const CIDRS_OR_ALL: &str = "*, or CIDRs such as 10.0.0.0/8,2001:db8::/32, or none";

/// Another mesh's name whose values are spelled as ours are.
const fn same(name: &'static str) -> Compatible {
    Compatible {
        name,
        translate: None,
    }
}

/// Another mesh's name whose values are spelled otherwise.
const fn translated(
    name: &'static str,
    translate: fn(&str) -> Result<String, String>,
) -> Compatible {
    Compatible {
        name,
        translate: Some(Translate(translate)),
    }
}

/// Every annotation there is.
pub const TABLE: &[Annotation] = &[
    Annotation {
        name: INJECT,
        compatible: &[same("sidecar.istio.io/inject"), same("linkerd.io/inject")],
        allowed: SWITCH,
        example: "enabled",
        doc: "Whether the pod gets a sidecar. Asked in this order, and the first answer counts: \
              the pod's label, the pod's annotation, the namespace's label, the namespace's \
              annotation, the installation's default. Prefer labels: the API server can select by \
              them, so that the webhook is not even called for pods it would skip. On namespaces \
              the label istio-injection is read too.",
        show: |_| value::show_switch(false),
        // The decision reads it where it stands; here it is only checked.
        set: |_, text, _| {
            parse_inject("linkerd.io/inject", text)
                .map(drop)
                .map_err(|_| "it is neither enabled nor disabled".to_owned())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-cpu-request",
        compatible: &[
            same("sidecar.istio.io/proxyCPU"),
            same("config.linkerd.io/proxy-cpu-request"),
        ],
        allowed: CPU,
        example: "50m",
        doc: "The CPU that the scheduler sets aside for the sidecar. Each of the resource \
              annotations is merged on its own: setting one leaves the others as they are.",
        show: |settings| value::show_quantity(&settings.resources.cpu.request.quantity),
        set: |settings, text, level| {
            let quantity = value::cpu(text)?;
            settings.resources.cpu.request = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-cpu-limit",
        compatible: &[
            same("sidecar.istio.io/proxyCPULimit"),
            same("config.linkerd.io/proxy-cpu-limit"),
        ],
        allowed: CPU,
        example: "500m",
        doc: "The CPU above which the sidecar is throttled. None by default, because each pause \
              of the proxy is added to requests of the pod; 0 means none.",
        show: |settings| value::show_quantity(&settings.resources.cpu.limit.quantity),
        set: |settings, text, level| {
            let quantity = value::limit(value::cpu(text)?);
            settings.resources.cpu.limit = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-memory-request",
        compatible: &[
            same("sidecar.istio.io/proxyMemory"),
            same("config.linkerd.io/proxy-memory-request"),
        ],
        allowed: BYTES,
        example: "64Mi",
        doc: "The memory that the scheduler sets aside for the sidecar. Where it is above a limit \
              that was set farther from the pod, that limit is raised to it.",
        show: |settings| value::show_quantity(&settings.resources.memory.request.quantity),
        set: |settings, text, level| {
            let quantity = value::bytes(text)?;
            settings.resources.memory.request = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-memory-limit",
        compatible: &[
            same("sidecar.istio.io/proxyMemoryLimit"),
            same("config.linkerd.io/proxy-memory-limit"),
        ],
        allowed: BYTES,
        example: "512Mi",
        doc: "The memory above which the kernel kills the sidecar, and every connection of the \
              pod with it. Raise it for pods with tens of thousands of connections. Where it is \
              below a request that was set farther from the pod, that request is lowered to it; 0 \
              means none.",
        show: |settings| value::show_quantity(&settings.resources.memory.limit.quantity),
        set: |settings, text, level| {
            let quantity = value::limit(value::bytes(text)?);
            settings.resources.memory.limit = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-ephemeral-storage-request",
        compatible: &[same("config.linkerd.io/proxy-ephemeral-storage-request")],
        allowed: BYTES,
        example: "16Mi",
        doc: "The local storage that the scheduler sets aside for the sidecar's logs; it writes \
              no other files.",
        show: |settings| {
            value::show_quantity(&settings.resources.ephemeral_storage.request.quantity)
        },
        set: |settings, text, level| {
            let quantity = value::bytes(text)?;
            settings.resources.ephemeral_storage.request = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-ephemeral-storage-limit",
        compatible: &[same("config.linkerd.io/proxy-ephemeral-storage-limit")],
        allowed: BYTES,
        example: "64Mi",
        doc: "The local storage above which the kubelet evicts the pod; 0 means none.",
        show: |settings| value::show_quantity(&settings.resources.ephemeral_storage.limit.quantity),
        set: |settings, text, level| {
            let quantity = value::limit(value::bytes(text)?);
            settings.resources.ephemeral_storage.limit = Amount { quantity, level };
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/mtls-mode",
        compatible: &[translated(
            "config.linkerd.io/default-inbound-policy",
            mode_of_linkerd_policy,
        )],
        allowed: "STRICT, PERMISSIVE or DISABLE",
        example: "STRICT",
        doc: "What the pod's ports accept: only mesh mTLS, mTLS and plaintext, or only plaintext.",
        show: |settings| settings.sidecar.mode.to_string(),
        set: |settings, text, _| {
            settings.sidecar.mode = value::mode(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/port-mtls-modes",
        compatible: &[translated(
            "config.linkerd.io/proxy-require-identity-inbound-ports",
            strict_ports,
        )],
        allowed: "PORT=MODE with commas between them, such as 8080=STRICT,9090=PERMISSIVE, or none",
        example: "9090=PERMISSIVE",
        doc: "The mTLS mode of single ports, where it differs from the pod's: a metrics port that \
              an unmeshed Prometheus reads, say. These are the ports of the container, not of a \
              Service.",
        show: |settings| value::show_port_modes(&settings.sidecar.port_modes),
        set: |settings, text, _| {
            settings.sidecar.port_modes = value::port_modes(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/opaque-ports",
        compatible: &[same("config.linkerd.io/opaque-ports")],
        allowed: PORTS,
        example: "3306,5432,27017",
        doc: "Ports whose bytes the proxy does not look into, because the server speaks first \
              or the protocol looks like another one. mTLS is the same on them. The list stands in \
              place of the default one, and wins over the names of ports.",
        show: |settings| value::show_ports(&settings.sidecar.opaque_ports),
        set: |settings, text, level| {
            settings.sidecar.opaque_ports = value::ports(text)?;
            settings.opaque_ports_level = level;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/include-inbound-ports",
        compatible: &[same("traffic.sidecar.istio.io/includeInboundPorts")],
        allowed: PORTS_OR_ALL,
        example: "8080,9000-9010",
        doc: "Ports of the pod whose connections go through the proxy.",
        show: |settings| value::show_port_selection(&settings.redirect.include_inbound_ports),
        set: |settings, text, _| {
            settings.redirect.include_inbound_ports = value::port_selection(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/exclude-inbound-ports",
        compatible: &[
            same("traffic.sidecar.istio.io/excludeInboundPorts"),
            same("config.linkerd.io/skip-inbound-ports"),
        ],
        allowed: PORTS,
        example: "22",
        doc: "Ports of the pod whose connections pass the proxy by, with no mTLS, no policy and \
              no metrics. An exclusion wins over an inclusion.",
        show: |settings| value::show_ports(&settings.redirect.exclude_inbound_ports),
        set: |settings, text, _| {
            settings.redirect.exclude_inbound_ports = value::ports(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/include-inbound-cidrs",
        compatible: &[],
        allowed: CIDRS_OR_ALL,
        example: "10.0.0.0/8",
        doc: "Addresses from which connections to the pod go through the proxy.",
        show: |settings| value::show_cidr_selection(&settings.redirect.include_inbound_cidrs),
        set: |settings, text, _| {
            settings.redirect.include_inbound_cidrs = value::cidr_selection(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/exclude-inbound-cidrs",
        compatible: &[same("config.linkerd.io/skip-subnets")],
        allowed: CIDRS,
        example: "192.0.2.0/24",
        doc: "Addresses from which connections to the pod pass the proxy by.",
        show: |settings| value::show_cidrs(&settings.redirect.exclude_inbound_cidrs),
        set: |settings, text, _| {
            settings.redirect.exclude_inbound_cidrs = value::cidrs(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/include-outbound-ports",
        compatible: &[same("traffic.sidecar.istio.io/includeOutboundPorts")],
        allowed: PORTS,
        example: "443",
        doc: "Ports to which the application's connections go through the proxy whatever the \
              address. It matters where bulkhead.io/include-outbound-cidrs is not *, and for DNS \
              (53), which passes the proxy by unless it is listed here.",
        show: |settings| value::show_ports(&settings.redirect.include_outbound_ports),
        set: |settings, text, _| {
            settings.redirect.include_outbound_ports = value::ports(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/exclude-outbound-ports",
        compatible: &[
            same("traffic.sidecar.istio.io/excludeOutboundPorts"),
            same("config.linkerd.io/skip-outbound-ports"),
        ],
        allowed: PORTS,
        example: "3306",
        doc: "Ports to which the application's connections pass the proxy by.",
        show: |settings| value::show_ports(&settings.redirect.exclude_outbound_ports),
        set: |settings, text, _| {
            settings.redirect.exclude_outbound_ports = value::ports(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/include-outbound-cidrs",
        compatible: &[same("traffic.sidecar.istio.io/includeOutboundIPRanges")],
        allowed: CIDRS_OR_ALL,
        example: "10.0.0.0/8",
        doc: "Addresses to which the application's connections go through the proxy.",
        show: |settings| value::show_cidr_selection(&settings.redirect.include_outbound_cidrs),
        set: |settings, text, _| {
            settings.redirect.include_outbound_cidrs = value::cidr_selection(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/exclude-outbound-cidrs",
        compatible: &[same("traffic.sidecar.istio.io/excludeOutboundIPRanges")],
        allowed: CIDRS,
        example: "169.254.169.254/32",
        doc: "Addresses to which the application's connections pass the proxy by: a cloud's \
              metadata service, say.",
        show: |settings| value::show_cidrs(&settings.redirect.exclude_outbound_cidrs),
        set: |settings, text, _| {
            settings.redirect.exclude_outbound_cidrs = value::cidrs(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/workload-api",
        compatible: &[],
        allowed: SWITCH,
        example: "enabled",
        doc: "Let the application ask the sidecar for its own SVIDs, X.509 and JWT, by the SPIFFE \
              Workload API: each of its containers gets a Unix socket in a folder that the pod \
              shares with nobody, and the variable SPIFFE_ENDPOINT_SOCKET unless it has one. The \
              private key leaves the sidecar this way. See docs/workload-api.md.",
        show: |settings| value::show_switch(settings.sidecar.workload_api_path.is_some()),
        set: |settings, text, _| {
            let path = value::switch(text)?.then(|| WORKLOAD_API_PATH.to_owned());
            settings.sidecar.workload_api_path = path;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/native-sidecar",
        compatible: &[
            same("sidecar.istio.io/nativeSidecar"),
            same("config.linkerd.io/proxy-enable-native-sidecar"),
            same("config.beta.linkerd.io/proxy-enable-native-sidecar"),
            same("config.alpha.linkerd.io/proxy-enable-native-sidecar"),
        ],
        allowed: SWITCH,
        example: "disabled",
        doc: "Run the proxy as a native sidecar: it starts before every other container, init \
              containers have network and mTLS, it stops after the application, and Jobs finish. \
              Disabled, it is a container beside the application, for clusters older than \
              Kubernetes 1.29.",
        show: |settings| value::show_switch(settings.native_sidecar),
        set: |settings, text, _| {
            settings.native_sidecar = value::switch(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/hold-application",
        compatible: &[same("config.linkerd.io/proxy-await")],
        allowed: SWITCH,
        example: "disabled",
        doc: "Start the application only when the proxy is ready, so that its first connection \
              does not fail. Disabled, the pod starts a little sooner.",
        show: |settings| value::show_switch(settings.hold_application),
        set: |settings, text, _| {
            settings.hold_application = value::switch(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/drain-duration",
        compatible: &[same("config.linkerd.io/shutdown-grace-period")],
        allowed: "a duration of one hour at most, such as 30s or 5m",
        example: "45s",
        doc: "How long open connections may take to finish when the pod stops. The pod's \
              terminationGracePeriodSeconds ends it all the same.",
        show: |settings| duration::format(settings.sidecar.drain_duration),
        set: |settings, text, _| {
            let hour = Duration::from_secs(60 * 60);
            settings.sidecar.drain_duration = value::bounded_duration(text, hour)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/rewrite-probes",
        compatible: &[same("sidecar.istio.io/rewriteAppHTTPProbers")],
        allowed: SWITCH,
        example: "disabled",
        doc: "Let the kubelet ask the proxy for the application's HTTP, TCP and gRPC probes and \
              HTTP lifecycle hooks, and the proxy the application. Without it STRICT refuses \
              them, because the kubelet has no certificate. Left alone in any case: exec probes; \
              probes of another host; probes of ports that pass the proxy by; and probes of a \
              port name that the container does not have, which the kubelet reports as ever.",
        show: |settings| value::show_switch(settings.rewrite_probes),
        set: |settings, text, _| {
            settings.rewrite_probes = value::switch(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-image",
        compatible: &[],
        allowed: "a reference to a container image, such as registry.example/bulkhead/proxy:1.2.3",
        example: "registry.example/bulkhead/proxy:1.2.3",
        doc: "The image of the proxy and of the init container. The other meshes' annotations \
              of this kind are not read: they name their own proxies.",
        show: |settings| settings.image.clone(),
        set: |settings, text, _| {
            settings.image = value::image(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/proxy-image-pull-policy",
        compatible: &[same("config.linkerd.io/image-pull-policy")],
        allowed: "Always, IfNotPresent or Never",
        example: "Always",
        doc: "When the kubelet fetches the image.",
        show: |settings| settings.image_pull_policy.as_str().to_owned(),
        set: |settings, text, _| {
            settings.image_pull_policy = text
                .parse()
                .map_err(|_| "it is not a pull policy".to_owned())?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/concurrency",
        compatible: &[],
        allowed: "a whole number from 1 to 64",
        example: "2",
        doc: "Worker threads of the proxy. One is enough for some 30,000 requests a second.",
        show: |settings| settings.sidecar.concurrency.to_string(),
        set: |settings, text, _| {
            settings.sidecar.concurrency = value::whole_number(text, 1, 64)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/log-level",
        compatible: &[
            translated("sidecar.istio.io/logLevel", istio_log_level),
            same("config.linkerd.io/proxy-log-level"),
        ],
        allowed: "off, error, warn, info, debug or trace, also by module, such as \
                  warn,bulkhead_proxy=debug",
        example: "debug",
        doc: "What the proxy logs. It can be changed while the proxy runs.",
        show: |settings| settings.sidecar.log_level.clone(),
        set: |settings, text, _| {
            settings.sidecar.log_level = value::log_filter(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/log-format",
        compatible: &[same("config.linkerd.io/proxy-log-format")],
        allowed: "json or text",
        example: "text",
        doc: "How the proxy writes its log lines.",
        show: |settings| settings.sidecar.log_format.as_str().to_owned(),
        set: |settings, text, _| {
            settings.sidecar.log_format = text
                .parse()
                .map_err(|_| "it is not a log format".to_owned())?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/access-log",
        compatible: &[translated(
            "config.linkerd.io/access-log",
            linkerd_access_log,
        )],
        allowed: SWITCH,
        example: "enabled",
        doc: "Write a log line for each request and connection. It can be switched while the \
              proxy runs.",
        show: |settings| value::show_switch(settings.sidecar.access_log),
        set: |settings, text, _| {
            settings.sidecar.access_log = value::switch(text)?;
            Ok(())
        },
    },
    Annotation {
        name: "bulkhead.io/trace-sampling",
        compatible: &[],
        allowed: "a percentage from 0 to 100 with at most two decimals, such as 1 or 0.05",
        example: "0.5",
        doc: "How many percent of the requests that carry no trace start one. A trace that \
              somebody else began is always carried on.",
        show: |settings| value::show_percentage(settings.sidecar.trace_sampling),
        set: |settings, text, _| {
            settings.sidecar.trace_sampling = value::percentage(text)?;
            Ok(())
        },
    },
];

/// Linkerd's policies by what they say about mTLS. Who may connect is another
/// matter, and `deny` is that matter alone.
fn mode_of_linkerd_policy(text: &str) -> Result<String, String> {
    let mode = match text {
        "all-authenticated" | "cluster-authenticated" => MtlsMode::Strict,
        "all-unauthenticated" | "cluster-unauthenticated" | "audit" => MtlsMode::Permissive,
        "deny" => {
            return Err(
                "it would refuse all traffic, which takes an AuthorizationPolicy here".to_owned(),
            );
        }
        _ => return Err("it is not a policy that Linkerd has".to_owned()),
    };
    Ok(mode.to_string())
}

/// A list of ports, each of which requires mTLS.
fn strict_ports(text: &str) -> Result<String, String> {
    let ports: PortSet = value::ports(text)?;
    // A range may have 65,535 ports, and each becomes an entry of its own.
    let count: usize = ports
        .ranges()
        .iter()
        .map(|(first, last)| usize::from(last - first) + 1)
        .sum();
    if count > 256 {
        return Err("it names more than 256 ports; set bulkhead.io/mtls-mode".to_owned());
    }
    let modes: Vec<_> = ports
        .ranges()
        .iter()
        .flat_map(|(first, last)| *first..=*last)
        .map(|port| format!("{port}={}", MtlsMode::Strict))
        .collect();
    Ok(modes.join(","))
}

/// The names of Envoy's log levels.
fn istio_log_level(text: &str) -> Result<String, String> {
    let level = match text {
        "warning" => "warn",
        "critical" => "error",
        "none" => "off",
        other => other,
    };
    Ok(level.to_owned())
}

/// Linkerd names the form of the access log; here it has the form of the log.
fn linkerd_access_log(text: &str) -> Result<String, String> {
    match text {
        "apache" | "json" => Ok(value::show_switch(true)),
        "" | "none" => Ok(value::show_switch(false)),
        _ => Err("it is neither apache nor json".to_owned()),
    }
}
