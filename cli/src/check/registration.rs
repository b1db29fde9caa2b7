//! Whether the API server would call the webhook, and believe it.

use std::time::SystemTime;

use bulkhead_pki::certificate::Certificate;
use bulkhead_webhook::registration::DEFAULT_NAME;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::finding::Finding;
use super::{Look, list_by};

const CHECK: &str = "registration";
const WEBHOOK: &str = "bulkhead-webhook";
/// The Secret of the webhook's certificate, and the key of its CAs in it.
const SECRET: &str = "bulkhead-webhook-tls";
const BUNDLE: &str = "ca.crt";
const MAX_PEM: usize = 1024 * 1024;

/// The webhooks of the registration.
pub(super) async fn webhooks(look: &Look<'_>) -> kube::Result<Option<Vec<MutatingWebhook>>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(look.cluster.client.clone());
    let found = api.get_opt(DEFAULT_NAME).await?;
    Ok(found.map(|found| found.webhooks.unwrap_or_default()))
}

/// Whether there is a registration, and whether it trusts the webhook's
/// certificate.
pub(super) async fn registration(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let Some(webhooks) = webhooks(look).await?.filter(|found| !found.is_empty()) else {
        let message = format!(
            "there is no MutatingWebhookConfiguration {DEFAULT_NAME}, or it is empty: no pod gets \
             a sidecar"
        );
        let namespace = &look.cluster.system_namespace;
        return Ok(vec![Finding::failed(CHECK, message).remedy(format!(
            "a webhook that runs writes it by itself within a minute; see `kubectl -n {namespace} \
             logs deployment/{WEBHOOK}`"
        ))]);
    };
    let mut findings = vec![bundles(&webhooks, look.now)];
    findings.push(match served_authorities(look).await {
        Ok(Some(served)) => compared(&webhooks, &served),
        Ok(None) => Finding::skipped(
            CHECK,
            format!("there is no Secret {SECRET}, so the webhook's certificate is another's"),
        ),
        Err(error) => Finding::of_error(CHECK, &error),
    });
    Ok(findings)
}

/// Whether every webhook has a CA that is valid.
fn bundles(webhooks: &[MutatingWebhook], now: SystemTime) -> Finding {
    let without: Vec<_> = webhooks
        .iter()
        .filter(|webhook| !authorities(webhook).iter().any(|ca| now <= ca.not_after()))
        .map(|webhook| webhook.name.clone())
        .collect();
    let count = webhooks.len();
    if without.is_empty() {
        return Finding::ok(
            CHECK,
            format!("{DEFAULT_NAME} has {count} webhooks, each with a valid CA"),
        );
    }
    Finding::failed(
        CHECK,
        format!(
            "no CA that is valid in {}: the API server cannot call them",
            without.join(", ")
        ),
    )
    .remedy("restart the webhook: it writes its CAs anew")
}

/// Whether the CAs of the served certificate are registered.
fn compared(webhooks: &[MutatingWebhook], served: &[Certificate]) -> Finding {
    let is_known = |webhook: &MutatingWebhook| {
        let registered = authorities(webhook);
        served.iter().all(|ca| registered.contains(ca))
    };
    if webhooks.iter().all(is_known) {
        return Finding::ok(
            CHECK,
            "the API server knows the CA of the webhook's certificate",
        );
    }
    Finding::failed(
        CHECK,
        format!("the CA of the Secret {SECRET} is not in every webhook of {DEFAULT_NAME}"),
    )
    .remedy("a webhook that runs mends it within a minute; else restart it")
}

fn authorities(webhook: &MutatingWebhook) -> Vec<Certificate> {
    webhook
        .client_config
        .ca_bundle
        .as_ref()
        .and_then(|bundle| std::str::from_utf8(&bundle.0).ok())
        .and_then(|text| Certificate::all_from_pem(text, MAX_PEM).ok())
        .unwrap_or_default()
}

async fn served_authorities(look: &Look<'_>) -> kube::Result<Option<Vec<Certificate>>> {
    let api: Api<Secret> = look.in_system_namespace();
    let bundle = api
        .get_opt(SECRET)
        .await?
        .and_then(|secret| secret.data?.remove(BUNDLE))
        .and_then(|bundle| String::from_utf8(bundle.0).ok());
    Ok(bundle.and_then(|text| Certificate::all_from_pem(&text, MAX_PEM).ok()))
}

/// Whether the Service leads to a webhook that is ready.
pub(super) async fn endpoints(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let api: Api<EndpointSlice> = look.in_system_namespace();
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={WEBHOOK}"));
    let slices = list_by(api, of_service).await?;
    let is_ready = |slice: &&EndpointSlice| {
        let mut endpoints = slice.endpoints.iter();
        endpoints.any(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready) != Some(false)
        })
    };
    Ok(vec![match slices.iter().find(is_ready) {
        Some(slice) => Finding::ok(
            "endpoints",
            format!(
                "service/{WEBHOOK} leads to a ready webhook ({})",
                slice.name_any()
            ),
        ),
        None => Finding::failed(
            "endpoints",
            format!(
                "service/{WEBHOOK} leads to no ready webhook: pods that ask for a sidecar are \
                 refused"
            ),
        )
        .remedy(
            "see why its pods are not ready; `bulkhead off` lets pods be created without sidecars \
             meanwhile",
        ),
    }])
}
