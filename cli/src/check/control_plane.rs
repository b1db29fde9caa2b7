//! The kinds that Bulkhead defines, and its programs.

use bulkhead_crds::certificate_authority::CertificateAuthority;
use bulkhead_crds::emergency::{Bypass, Ejection, InjectionStop};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, CustomResourceExt as _};

use super::Look;
use super::finding::Finding;

const INSTALL: &str = "install the chart again: `helm upgrade --install bulkhead charts/bulkhead \
                       -n bulkhead-system`, or `bulkhead install | kubectl apply --server-side -f -`";
/// The label that says which version an object is of.
const VERSION: &str = "app.kubernetes.io/version";

/// Whether the kinds of the kill switch and of the CA are served.
pub(super) async fn kinds(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let api: Api<CustomResourceDefinition> = Api::all(look.cluster.client.clone());
    let mut missing = Vec::new();
    for name in [
        InjectionStop::crd_name(),
        Bypass::crd_name(),
        Ejection::crd_name(),
        CertificateAuthority::crd_name(),
    ] {
        let found = api.get_opt(name).await?;
        let conditions = found
            .and_then(|found| found.status?.conditions)
            .unwrap_or_default();
        let is_served = conditions
            .iter()
            .any(|condition| condition.type_ == "Established" && condition.status == "True");
        if !is_served {
            missing.push(name.to_owned());
        }
    }
    Ok(vec![if missing.is_empty() {
        Finding::ok(
            "kinds",
            "the kinds of the kill switch and of the CA are served",
        )
    } else {
        let message = format!(
            "not served: {}; the kill switch and the CA need them",
            missing.join(", ")
        );
        Finding::failed("kinds", message).remedy(INSTALL)
    }])
}

/// Whether the programs run, and in which version.
pub(super) async fn programs(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let api: Api<Deployment> = look.in_system_namespace();
    let mut findings = Vec::new();
    for (name, loss) in [
        (
            "bulkhead-webhook",
            "pods that ask for a sidecar are refused",
        ),
        (
            "bulkhead-ca",
            "new pods wait for their certificate, and none is renewed",
        ),
        ("bulkhead-control", "sidecars go on with what they know"),
    ] {
        findings.push(match api.get_opt(name).await? {
            Some(deployment) => program(look, name, loss, &deployment),
            None => {
                let namespace = &look.cluster.system_namespace;
                let message = format!("there is no deployment/{name} in {namespace}: {loss}");
                Finding::failed("programs", message).remedy(INSTALL)
            }
        });
    }
    Ok(findings)
}

fn program(look: &Look<'_>, name: &str, loss: &str, deployment: &Deployment) -> Finding {
    let namespace = &look.cluster.system_namespace;
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
    let labels = deployment.metadata.labels.as_ref();
    let version = labels.and_then(|labels| labels.get(VERSION));
    let version = version.map_or_else(
        || "of no version".to_owned(),
        |text| format!("version {text}"),
    );
    let message = format!("{name}, {version}: {ready} of {wanted} replicas are ready");
    if ready == 0 {
        let look_there = format!(
            "`kubectl -n {namespace} get pods -l app.kubernetes.io/name={name}`, and \
             `kubectl -n {namespace} logs deployment/{name}`; `bulkhead off` lets pods be created \
             without sidecars meanwhile"
        );
        return Finding::failed("programs", format!("{message}: {loss}")).remedy(look_there);
    }
    if ready < wanted {
        return Finding::notice("programs", message);
    }
    if !version.ends_with(env!("CARGO_PKG_VERSION")) {
        let ours = env!("CARGO_PKG_VERSION");
        return Finding::notice("programs", format!("{message}; this command is {ours}"));
    }
    Finding::ok("programs", message)
}
