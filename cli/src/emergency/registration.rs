//! Level 1 where the API server has no MutatingAdmissionPolicies (before
//! Kubernetes 1.36): the webhook's registration leaves the pods out. The
//! webhook, when it runs, writes the same from the switches that are there.

use std::time::SystemTime;

use anyhow::Context as _;
use bulkhead_crds::emergency::{Emergency as _, InjectionStop, MATCH_CONDITION, match_condition};
use bulkhead_webhook::registration::DEFAULT_NAME;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration,
};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
/// How often somebody else may come in between.
const ATTEMPTS: u32 = 5;

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
/// none where there is none. A webhook that runs writes the same at the same
/// time: whoever comes second finds it done.
pub(crate) async fn leave_out(cluster: &Cluster, now: SystemTime) -> anyhow::Result<()> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let stops: Api<InjectionStop> = Api::all(cluster.client.clone());
    let stops = stops.list(&ListParams::default()).await.context(
        "listing the InjectionStops of all namespaces failed; before Kubernetes 1.36 they must \
         be known together, for they go into one webhook configuration",
    )?;
    let on = stops.items.iter().filter(|stop| stop.is_on(now));
    let condition = match_condition(on, &cluster.system_namespace);
    for attempt in 1.. {
        let found = api
            .get_opt(DEFAULT_NAME)
            .await
            .with_context(|| format!("reading the webhook configuration {DEFAULT_NAME} failed"))?;
        let Some(found) = found else { break };
        let webhooks = found.webhooks.unwrap_or_default();
        let wanted = with_condition(webhooks.clone(), condition.as_ref());
        if wanted == webhooks {
            break;
        }
        // With the version that was read: what somebody wrote in between is not
        // overwritten.
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "webhooks": wanted,
        }));
        match api
            .patch(DEFAULT_NAME, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("changing the webhook configuration {DEFAULT_NAME} failed")
                });
            }
        }
    }
    Ok(())
}

/// The webhooks with this condition, or with none of its name.
fn with_condition(
    mut webhooks: Vec<MutatingWebhook>,
    condition: Option<&MatchCondition>,
) -> Vec<MutatingWebhook> {
    for webhook in &mut webhooks {
        let conditions = webhook.match_conditions.get_or_insert_default();
        conditions.retain(|existing| existing.name != MATCH_CONDITION);
        conditions.extend(condition.cloned());
        if conditions.is_empty() {
            webhook.match_conditions = None;
        }
    }
    webhooks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_gets_the_condition_once_and_loses_nothing_else() {
        let condition = |name: &str, expression: &str| MatchCondition {
            name: name.to_owned(),
            expression: expression.to_owned(),
        };
        let own = condition("not-windows", "true");
        let before = vec![
            MutatingWebhook {
                match_conditions: Some(vec![own.clone()]),
                ..MutatingWebhook::default()
            },
            MutatingWebhook::default(),
        ];
        let first = condition(MATCH_CONDITION, "!(true)");
        let second = condition(MATCH_CONDITION, "!(request.namespace == 'shop')");
        let stopped = with_condition(before.clone(), Some(&first));
        let again = with_condition(stopped, Some(&second));
        let conditions = again[0].match_conditions.as_ref().unwrap();
        assert_eq!(*conditions, [own, second]);
        assert_eq!(with_condition(again, None), before);
    }
}
