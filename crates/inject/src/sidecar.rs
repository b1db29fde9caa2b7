//! What is added to a pod: containers and volumes, as typed objects of the
//! Kubernetes API.
//!
//! Everything satisfies the Pod Security Standard `restricted`, but for one
//! thing: the init container has NET_ADMIN, without which nobody can redirect
//! traffic.

use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::ports;
use bulkhead_core::resources::Resources;
use bulkhead_core::sidecar::CA_ROOTS_PATH;
use bulkhead_core::sidecar::DOWNWARD_API;
use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use bulkhead_core::sidecar::TOKEN_PATH;
use k8s_openapi::api::core::v1::Capabilities;
use k8s_openapi::api::core::v1::ConfigMapProjection;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::core::v1::ContainerPort;
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use k8s_openapi::api::core::v1::EnvVar;
use k8s_openapi::api::core::v1::EnvVarSource;
use k8s_openapi::api::core::v1::ExecAction;
use k8s_openapi::api::core::v1::HTTPGetAction;
use k8s_openapi::api::core::v1::KeyToPath;
use k8s_openapi::api::core::v1::Lifecycle;
use k8s_openapi::api::core::v1::LifecycleHandler;
use k8s_openapi::api::core::v1::ObjectFieldSelector;
use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::api::core::v1::ProjectedVolumeSource;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::api::core::v1::SeccompProfile;
use k8s_openapi::api::core::v1::SecurityContext;
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;
use k8s_openapi::api::core::v1::Volume;
use k8s_openapi::api::core::v1::VolumeMount;
use k8s_openapi::api::core::v1::VolumeProjection;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::Refusal;
use crate::pod;
use crate::reason::RefuseReason;
use crate::workload_api;

/// The container that enforces mTLS.
pub const PROXY_CONTAINER: &str = "bulkhead-proxy";
/// The container that redirects the pod's traffic, and ends.
pub const INIT_CONTAINER: &str = "bulkhead-init";
/// The volume with the token that proves the pod's ServiceAccount to the CA.
pub const TOKEN_VOLUME: &str = "bulkhead-token";
/// The volume with the trust bundle, and with the switch that takes the proxy
/// out of the path where there is one.
pub const TRUST_BUNDLE_VOLUME: &str = "bulkhead-trust-bundle";
/// The ConfigMap that the bundle comes from, under the key `ca.crt`. The CA
/// puts one into every namespace; a pod that is sooner than it waits, with an
/// Event that names it.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "bulkhead-trust-bundle";
/// The key under which it has the same as a SPIFFE bundle, which says its version.
/// A CA of an earlier release writes none, and no pod waits for it.
const BUNDLE_DOCUMENT_KEY: &str = "bundle.json";
/// The ConfigMap of a namespace whose proxies are to forward bytes untouched,
/// under the key `bypass.json`. Nearly always there is none, and the kubelet
/// writes and removes the file in running pods when that changes: it is how
/// proxies hear of it while nothing of Bulkhead runs.
pub const BYPASS_CONFIG_MAP: &str = "bulkhead-bypass";
/// The key of [`BYPASS_CONFIG_MAP`], and the name of the file beside the roots.
pub const BYPASS_KEY: &str = "bypass.json";

/// Whether a container or volume of this name can only be ours.
pub(crate) fn is_reserved(name: &str) -> bool {
    [
        PROXY_CONTAINER,
        INIT_CONTAINER,
        TOKEN_VOLUME,
        TRUST_BUNDLE_VOLUME,
        workload_api::VOLUME,
    ]
    .contains(&name)
}

/// The program of the proxy's container, by which a container that has its name
/// is known to be ours.
const PROXY_PROGRAM: &str = "bulkhead-proxy";

/// Whether a container is the proxy's, and not one of the user's that happens to
/// have its name.
pub(crate) fn is_proxy(container: &Value) -> bool {
    let program = container.get("command").and_then(|command| command.get(0));
    pod::name(container) == Some(PROXY_CONTAINER)
        && program.and_then(Value::as_str) == Some(PROXY_PROGRAM)
}

/// The user and group of the init container: not root, because `restricted`
/// forbids it, and not the proxy's, whose packets are not redirected.
///
/// The kernel hands NET_ADMIN to a program of such a user only where the file
/// of the program carries it (`setcap cap_net_admin+p`), so the image must; this
/// works under no_new_privs, because the runtime's process that starts the program
/// has the capability itself, and so none is gained.
const INIT_UID: i64 = 65_532;

/// How long a token is good for. The kubelet replaces it when four fifths have
/// passed, and the proxy reads it anew for each call, so that short costs little
/// and makes a stolen one worth little.
const TOKEN_SECONDS: i64 = 60 * 60;

/// How often the proxy may fail its startup probe, once a second. A CA that is
/// away is not mended by starting the proxy anew, so the time is generous.
const STARTUP_SECONDS: i32 = 600;

/// The longest value of an environment variable, in bytes. Linux starts no
/// program with one of 128 KiB or more (MAX_ARG_STRLEN), and the container would
/// fail with no word as to why.
const MAX_ENV_LENGTH: usize = 120 * 1024;

/// The proxy's container.
pub(crate) fn proxy(settings: &PodSettings) -> Result<Container, Refusal> {
    let native = settings.native_sidecar;
    let hold = settings.hold_application;
    let mut volume_mounts = vec![
        mounted(TOKEN_VOLUME, TOKEN_PATH),
        mounted(TRUST_BUNDLE_VOLUME, CA_ROOTS_PATH),
    ];
    if let Some(path) = &settings.sidecar.workload_api_path {
        volume_mounts.push(VolumeMount {
            read_only: None,
            ..mounted(workload_api::VOLUME, path)
        });
    }
    Ok(Container {
        name: PROXY_CONTAINER.to_owned(),
        command: Some(vec![PROXY_PROGRAM.to_owned()]),
        env: Some(proxy_env(settings)?),
        lifecycle: (hold && !native).then(wait_until_ready),
        ports: Some(vec![
            declared(ports::PROXY_INBOUND),
            declared(ports::PROXY_STATUS),
        ]),
        readiness_probe: Some(Probe {
            period_seconds: Some(10),
            timeout_seconds: Some(3),
            ..ready_probe()
        }),
        restart_policy: native.then(|| "Always".to_owned()),
        security_context: Some(SecurityContext {
            run_as_user: Some(ports::PROXY_UID),
            run_as_group: Some(ports::PROXY_UID),
            ..restricted()
        }),
        startup_probe: (hold && native).then(|| Probe {
            period_seconds: Some(1),
            timeout_seconds: Some(3),
            failure_threshold: Some(STARTUP_SECONDS),
            ..ready_probe()
        }),
        volume_mounts: Some(volume_mounts),
        ..container(settings)
    })
}

/// The init container.
pub(crate) fn init(settings: &PodSettings) -> Container {
    let env: Vec<_> = settings
        .redirect
        .to_env()
        .into_iter()
        .map(|(name, value)| literal(name, &value))
        .collect();
    Container {
        name: INIT_CONTAINER.to_owned(),
        command: Some(vec!["bulkhead-init".to_owned()]),
        // An empty list is not the same as none to whoever compares pods.
        env: (!env.is_empty()).then_some(env),
        security_context: Some(SecurityContext {
            run_as_user: Some(INIT_UID),
            run_as_group: Some(INIT_UID),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..restricted()
        }),
        ..container(settings)
    }
}

/// The volumes that the proxy mounts.
pub(crate) fn volumes(settings: &PodSettings) -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: file_name(TOKEN_PATH).to_owned(),
    };
    let mut volumes = vec![
        projected(
            TOKEN_VOLUME,
            vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }],
        ),
        projected(
            TRUST_BUNDLE_VOLUME,
            vec![
                from_config_map(TRUST_BUNDLE_CONFIG_MAP, "ca.crt", CA_ROOTS_PATH, None),
                from_config_map(BYPASS_CONFIG_MAP, BYPASS_KEY, BYPASS_KEY, Some(true)),
                from_config_map(
                    TRUST_BUNDLE_CONFIG_MAP,
                    BUNDLE_DOCUMENT_KEY,
                    BUNDLE_DOCUMENT_KEY,
                    Some(true),
                ),
            ],
        ),
    ];
    if settings.sidecar.workload_api_path.is_some() {
        volumes.push(Volume {
            name: workload_api::VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                // It holds a socket.
                size_limit: Some(Quantity("1Mi".to_owned())),
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// One key of a ConfigMap, as the file that `path` ends with.
fn from_config_map(name: &str, key: &str, path: &str, optional: Option<bool>) -> VolumeProjection {
    VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: name.to_owned(),
            items: Some(vec![KeyToPath {
                key: key.to_owned(),
                path: file_name(path).to_owned(),
                mode: None,
            }]),
            optional,
        }),
        ..VolumeProjection::default()
    }
}

/// What both containers have in common. The init container asks for what the
/// proxy asks for: it ends before the proxy starts, so the pod as a whole asks
/// for no more, and a quota that wants every container to say something is
/// content.
fn container(settings: &PodSettings) -> Container {
    Container {
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.as_str().to_owned()),
        resources: resources(&settings.resources),
        ..Container::default()
    }
}

fn proxy_env(settings: &PodSettings) -> Result<Vec<EnvVar>, Refusal> {
    let downward = DOWNWARD_API.iter().map(|(name, field)| EnvVar {
        name: (*name).to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: (*field).to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    });
    let is_downward = |name: &str| DOWNWARD_API.iter().any(|(other, _)| *other == name);
    let variables = settings.sidecar.to_env();
    if let Some((name, value)) = variables
        .iter()
        .find(|(_, value)| value.len() > MAX_ENV_LENGTH)
    {
        return Err(Refusal {
            reason: RefuseReason::TooLarge,
            message: format!(
                "the pod's probes and settings need a variable {name} of {} bytes, and a \
                 container cannot start with one of more than {MAX_ENV_LENGTH}",
                value.len()
            ),
        });
    }
    let literals = variables
        .iter()
        .filter(|(name, _)| !is_downward(name))
        .map(|(name, value)| literal(name, value));
    Ok(downward.chain(literals).collect())
}

/// A variable with just this value. Kubernetes replaces `$(NAME)` in values and
/// reads `$$` as `$`, so that every `$` is doubled.
fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.replace('$', "$$")),
        value_from: None,
    }
}

/// The value that a container gets from a variable made by [`literal`].
pub(crate) fn unescape(value: &str) -> String {
    value.replace("$$", "$")
}

fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let mut requirements = ResourceRequirements::default();
    for (name, bounds) in resources.by_name() {
        for (list, amount) in [
            (&mut requirements.requests, &bounds.request),
            (&mut requirements.limits, &bounds.limit),
        ] {
            if let Some(quantity) = &amount.quantity {
                list.get_or_insert_default()
                    .insert(name.to_owned(), Quantity(quantity.to_string()));
            }
        }
    }
    (requirements != ResourceRequirements::default()).then_some(requirements)
}

/// What `restricted` asks of every container.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            localhost_profile: None,
            type_: "RuntimeDefault".to_owned(),
        }),
        ..SecurityContext::default()
    }
}

fn ready_probe() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/ready".to_owned()),
            port: IntOrString::Int(i32::from(ports::PROXY_STATUS)),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

/// Containers are started one after the other, each when the hook of the one
/// before has ended; so a hook that waits holds the application back.
fn wait_until_ready() -> Lifecycle {
    let command = vec![PROXY_PROGRAM.to_owned(), "wait".to_owned()];
    Lifecycle {
        post_start: Some(LifecycleHandler {
            exec: Some(ExecAction {
                command: Some(command),
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    }
}

fn declared(number: u16) -> ContainerPort {
    let name = ports::TABLE
        .iter()
        .find(|port| port.number == number)
        .map(|port| port.name.to_owned());
    ContainerPort {
        container_port: i32::from(number),
        name,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Mounts a volume where the folder of the file is.
fn mounted(volume: &str, file: &str) -> VolumeMount {
    let folder = file.rsplit_once('/').map_or("/", |(folder, _)| folder);
    VolumeMount {
        name: volume.to_owned(),
        mount_path: folder.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
