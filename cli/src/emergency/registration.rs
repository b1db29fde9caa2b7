//! Level 1 where the API server has no MutatingAdmissionPolicies (before
//! Kubernetes 1.36): the webhook's registration leaves the pods out. The
//! webhook, when it runs, writes the same from the switches that are there.

use std::time::SystemTime;

use anyhow::Context as _;
use bulkhead_crds::emergency::{Emergency as _, InjectionStop, MATCH_CONDITION, match_condition};
use bulkhead_webhook::registration::DEFAULT_NAME;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;

const ADMISSION: &str = "admissionregistration.k8s.io/v1";

/// Whether the API server knows the policies that obey the switch.
pub(crate) async fn is_obeyed_by_the_api_server(cluster: &Cluster) -> anyhow::Result<bool> {
    let served = cluster
        .client
        .list_api_group_resources(ADMISSION)
        .await
        .context("asking the API server what it serves failed")?;
    let is_policy = |name: &str| name == "mutatingadmissionpolicies";
    Ok(served.resources.iter().any(|found| is_policy(&found.name)))
}

/// Makes the registration leave out the pods of every switch that is on, and of
/// none where there is none. Returns whether there is a registration.
pub(crate) async fn leave_out(cluster: &Cluster, now: SystemTime) -> anyhow::Result<bool> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let stops: Api<InjectionStop> = Api::all(cluster.client.clone());
    let stops = stops.list(&ListParams::default()).await.context(
        "listing the InjectionStops of all namespaces failed; before Kubernetes 1.36 they must \
         be known together, for they go into one webhook configuration",
    )?;
    let on = stops.items.iter().filter(|stop| stop.is_on(now));
    let condition = match_condition(on, &cluster.system_namespace);
    let Some(found) = api
        .get_opt(DEFAULT_NAME)
        .await
        .with_context(|| format!("reading the webhook configuration {DEFAULT_NAME} failed"))?
    else {
        return Ok(false);
    };
    let mut webhooks = found.webhooks.unwrap_or_default();
    for webhook in &mut webhooks {
        let conditions = webhook.match_conditions.get_or_insert_default();
        conditions.retain(|existing| existing.name != MATCH_CONDITION);
        conditions.extend(condition.clone());
    }
    // With the version that was read: a webhook that wrote in between is not
    // overwritten.
    let patch = json!({
        "metadata": {"resourceVersion": found.metadata.resource_version},
        "webhooks": webhooks,
    });
    api.patch(DEFAULT_NAME, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .with_context(|| format!("changing the webhook configuration {DEFAULT_NAME} failed"))?;
    Ok(true)
}
