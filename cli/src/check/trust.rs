//! What everybody trusts: the bundle in every namespace.

use std::collections::BTreeMap;

use bulkhead_inject::TRUST_BUNDLE_CONFIG_MAP;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::finding::Finding;
use super::{Look, a_few, list_by};

/// The key of the roots in the ConfigMap.
const ROOTS: &str = "ca.crt";

/// Whether pods of every namespace find the CA's roots.
pub(super) async fn bundles(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    const CHECK: &str = "trust-bundle";
    let found = stored(look).await?;
    let Some(own) = found.get(&look.cluster.system_namespace) else {
        let message = format!(
            "there is no ConfigMap {TRUST_BUNDLE_CONFIG_MAP} in {}: injected pods do not start",
            look.cluster.system_namespace
        );
        return Ok(vec![Finding::failed(CHECK, message).remedy(
            "the CA writes it to every namespace; see that it runs, and its log",
        )]);
    };
    let names = |is_wrong: &dyn Fn(Option<&String>) -> bool| -> Vec<String> {
        look.served()
            .map(|namespace| namespace.name_any())
            .filter(|name| is_wrong(found.get(name)))
            .collect()
    };
    let missing = names(&|bundle| bundle.is_none());
    let other = names(&|bundle| bundle.is_some_and(|bundle| bundle != own));
    let mut findings = Vec::new();
    for (wrong, what) in [
        (
            missing,
            "is missing, so that injected pods do not start, in",
        ),
        (other, "has other roots than the CA in"),
    ] {
        if !wrong.is_empty() {
            let message = format!("{TRUST_BUNDLE_CONFIG_MAP} {what} {}", a_few(&wrong));
            let remedy = "a CA that runs mends it within seconds; see its log";
            findings.push(Finding::failed(CHECK, message).remedy(remedy));
        }
    }
    if findings.is_empty() {
        let count = look.served().count();
        findings.push(Finding::ok(
            CHECK,
            format!("the same roots in all {count} namespaces"),
        ));
    }
    Ok(findings)
}

/// The bundles by their namespaces.
pub(super) async fn stored(look: &Look<'_>) -> kube::Result<BTreeMap<String, String>> {
    let api: Api<ConfigMap> = Api::all(look.cluster.client.clone());
    let ours = ListParams::default().fields(&format!("metadata.name={TRUST_BUNDLE_CONFIG_MAP}"));
    let bundles = list_by(api, ours)
        .await?
        .into_iter()
        .filter_map(|mut found| {
            let namespace = found.namespace()?;
            Some((namespace, found.data.as_mut()?.remove(ROOTS)?))
        });
    Ok(bundles.collect())
}
