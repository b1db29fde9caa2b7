//! What everybody trusts: the bundle in every namespace, and what expires.

use std::collections::BTreeMap;

use bulkhead_core::duration;
use bulkhead_inject::TRUST_BUNDLE_CONFIG_MAP;
use bulkhead_pki::certificate::Certificate;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::finding::Finding;
use super::{Look, a_few, list_by};

/// The key of the roots in the ConfigMap.
const ROOTS: &str = "ca.crt";
const MAX_PEM: usize = 1024 * 1024;

/// The Secrets with certificates of ours, and the keys that hold some.
const CERTIFICATES: [(&str, &[&str]); 2] = [
    ("bulkhead-ca", &["root.crt", "intermediate.crt"]),
    ("bulkhead-webhook-tls", &["tls.crt", "ca.crt"]),
];

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
async fn stored(look: &Look<'_>) -> kube::Result<BTreeMap<String, String>> {
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

/// Whether anything expires soon. The roots are public; the others are in
/// Secrets, which not everybody may read.
pub(super) async fn expiry(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    const CHECK: &str = "certificates";
    let mut findings = Vec::new();
    if let Some(roots) = stored(look).await?.get(&look.cluster.system_namespace) {
        findings.extend(expiring(look, "the root", roots));
    }
    let secrets: Api<Secret> = look.in_system_namespace();
    for (name, keys) in CERTIFICATES {
        let secret = match secrets.get_opt(name).await {
            Ok(Some(secret)) => secret,
            Ok(None) => {
                findings.push(Finding::skipped(
                    CHECK,
                    format!("there is no Secret {name}"),
                ));
                continue;
            }
            Err(error) => {
                findings.push(Finding::of_error(CHECK, &error));
                continue;
            }
        };
        let mut data = secret.data.unwrap_or_default();
        for key in keys {
            let text = data
                .remove(*key)
                .and_then(|bytes| String::from_utf8(bytes.0).ok());
            let what = format!("{key} of the Secret {name}");
            findings.extend(expiring(look, &what, text.as_deref().unwrap_or_default()));
        }
    }
    Ok(findings)
}

/// What is to be said of the one that expires first.
fn expiring(look: &Look<'_>, what: &str, pem: &str) -> Option<Finding> {
    const CHECK: &str = "certificates";
    let certificates = match Certificate::all_from_pem(pem, MAX_PEM) {
        Ok(certificates) => certificates,
        Err(error) => {
            return Some(Finding::failed(
                CHECK,
                format!("{what} cannot be read: {error}"),
            ));
        }
    };
    let first = certificates.iter().map(Certificate::not_after).min()?;
    let Ok(left) = first.duration_since(look.now) else {
        return Some(Finding::failed(CHECK, format!("{what} has expired")).remedy(RENEW));
    };
    let hours = left.as_secs() / 3600;
    let message = format!(
        "{what} expires in {} days and {} hours",
        hours / 24,
        hours % 24
    );
    Some(if left <= look.expires_within {
        let limit = duration::format(look.expires_within);
        Finding::failed(CHECK, format!("{message}, within {limit}")).remedy(RENEW)
    } else {
        Finding::ok(CHECK, message)
    })
}

const RENEW: &str = "what the programs make they renew by themselves while they run, except a root: \
                     see their logs, and plan a root's replacement";
