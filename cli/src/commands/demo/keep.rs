//! What a person can try while the demo is left running.

use std::fs;

use anyhow::Context as _;

use super::reviewer::{SHOP, admission_review, wanted};
use super::stage::Stage;

/// Lines to paste into another terminal. Writes the files that they need.
pub(super) async fn what_to_try(stage: &mut Stage) -> anyhow::Result<String> {
    let directory = stage.directory().to_owned();
    let write = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {name} failed"))?;
        Ok(path.display().to_string())
    };
    let review = admission_review(&wanted(SHOP, "deployment/cart")?);
    let review = write("review.json", &serde_json::to_string_pretty(&review)?)?;
    let reviewer = stage.reviewer().await?;
    let webhook = reviewer.url();
    let webhook_ca = write("webhook-ca.pem", &reviewer.ca_bundle().await)?;

    let (mesh, workloads) = stage.workloads().await?;
    let own_ca = workloads.own_tls.authority.certificate().to_pem();
    let own_ca = write("own-tls-ca.pem", &own_ca)?;
    let ca = mesh.ca_address();
    let ca_metrics = mesh.ca_monitoring_address();
    let roots = mesh.roots_path().display().to_string();
    let token = mesh.token_path("web", "front").display().to_string();
    let dial = workloads.dial_replicas();
    let impostor = workloads.dial_impostor();
    let strict = workloads.strict_port();
    let permissive = workloads.permissive_port();
    let own_tls = workloads.own_tls_port();
    let status = workloads.cart.addresses.status;
    let front_admin = workloads.front.addresses.admin;
    let cart_admin = workloads.cart.addresses.admin;
    Ok(format!(
        "\
Everything is left running. Paste any of this into another terminal:

  # front calls cart: plain HTTP here, mutual TLS on the way
  curl http://{dial}/hello

  # no sidecar, and cart is STRICT: 403, with the reason and the rule
  curl -i http://{strict}/hello

  # no sidecar, and this port is PERMISSIVE: 200, and counted
  curl -i http://{permissive}/hello
  curl -s http://{status}/metrics | grep plaintext

  # front calls orders, and cart answers there: 503
  curl -i http://{impostor}/hello

  # an application's own TLS, through cart's proxy
  curl --cacert {own_ca} https://{own_tls}/hello

  # front's certificate; have it renewed; see that it is another one
  curl -s http://{front_admin}/certs
  curl -X POST http://{front_admin}/renew

  # what cart's proxy was told, what it counts, what the CA counts
  curl -s http://{cart_admin}/config_dump
  curl -s http://{status}/metrics
  curl -s http://{ca_metrics}/metrics

  # ask the webhook about a pod of cart, as the API server would
  curl --cacert {webhook_ca} {webhook} \\
    -H 'content-type: application/json' -d @{review}

The CSR service listens on {ca}; its roots and front's token are in
  {roots}
  {token}

Ctrl-C stops everything and removes these files."
    ))
}
