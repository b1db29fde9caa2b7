//! What ends soon and was not renewed in time: the CA's authorities, the
//! certificates of the programs, those of the workloads.
//!
//! Everything but a root renews itself long before it ends, so that a short
//! lifetime is no problem, and what has less than a third of it left is one,
//! whatever its length.

use std::time::{Duration, SystemTime};

use bulkhead_core::ports;
use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthorityStatus,
};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::probe;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::finding::Finding;
use super::{Look, a_few, trust};
use crate::authority::{holding, object, replicas};
use crate::emergency::{Presence, Scope, mesh_pods};
use crate::{admin, error, moment};

/// A root with less left than this is a problem where nobody says otherwise.
const ROOT: Duration = Duration::from_secs(60 * moment::DAY);
/// What is renewed in time never has a smaller part of its life left.
const PART: u32 = 3;
/// Sidecars that are asked; each is a connection through the API server.
const ASKED: usize = 300;
const MAX_PEM: usize = 1024 * 1024;

/// The webhook's Secret, and the keys of it that hold certificates.
const WEBHOOK: (&str, [&str; 2]) = ("bulkhead-webhook-tls", ["tls.crt", "ca.crt"]);

/// Something that ends.
struct Item {
    what: String,
    kind: Kind,
    not_before: Option<SystemTime>,
    not_after: SystemTime,
    /// What to do when it is not renewed in time.
    remedy: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// It lasts long, and its end is a matter of plans.
    Root,
    /// Programs renew it while they run.
    Renewed,
}

impl Item {
    /// How little may be left.
    fn limit(&self, asked: Option<Duration>) -> Duration {
        let life = self.not_before.and_then(|begin| {
            let life = self.not_after.duration_since(begin);
            life.ok()
        });
        let third = life.map(|life| life / PART);
        match (self.kind, asked) {
            (_, Some(asked)) => asked,
            (Kind::Root, None) => third.map_or(ROOT, |third| third.min(ROOT)),
            (Kind::Renewed, None) => third.unwrap_or(Duration::ZERO),
        }
    }

    fn judge(self, check: &'static str, asked: Option<Duration>, now: SystemTime) -> Finding {
        let limit = self.limit(asked);
        let Ok(left) = self.not_after.duration_since(now) else {
            let message = format!(
                "{} expired {}",
                self.what,
                moment::relative(self.not_after, now)
            );
            return Finding::failed(check, message).remedy(self.remedy);
        };
        let message = format!(
            "{} expires {}",
            self.what,
            moment::relative(self.not_after, now)
        );
        if left > limit {
            return Finding::ok(check, message);
        }
        let why = match (self.kind, asked) {
            (Kind::Renewed, None) => "and should have been renewed by now".to_owned(),
            _ => format!("within {}", moment::span(limit)),
        };
        Finding::failed(check, format!("{message}, {why}")).remedy(self.remedy)
    }
}

/// The CA's roots, intermediates and keys for JWTs, as its object says; where
/// there is none, the roots that it gave out.
pub(super) async fn authorities(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    const CHECK: &str = "authorities";
    let status = match object::find(look.cluster).await {
        Ok(found) => found.and_then(|authority| authority.status),
        Err(error) => return Ok(vec![Finding::of_error(CHECK, &error)]),
    };
    if let Some(status) = status.filter(|status| !status.authorities.is_empty()) {
        return Ok(of_status(&status)
            .into_iter()
            .map(|item| item.judge(CHECK, look.expires_within, look.now))
            .collect());
    }
    let stored = trust::stored(look).await?;
    let roots = stored.get(&look.cluster.system_namespace);
    let Some(roots) = roots else {
        return Ok(vec![Finding::skipped(
            CHECK,
            "the CA has not said which authorities there are, nor given out a root",
        )]);
    };
    Ok(of_pem(look, CHECK, "the root", Kind::Root, roots, ROTATE))
}

fn of_status(status: &CertificateAuthorityStatus) -> Vec<Item> {
    let is_rotating = status.target_generation != status.root_generation;
    let authorities = status.authorities.iter();
    let live = authorities.filter(|authority| authority.state != AuthorityState::Retired);
    live.filter_map(|authority| {
        let (kind, remedy) = match authority.kind {
            AuthorityKind::Root if is_rotating => (Kind::Root, ROTATING),
            AuthorityKind::Root => (Kind::Root, ROTATE),
            AuthorityKind::Intermediate | AuthorityKind::Jwt => (Kind::Renewed, SEE_CA),
        };
        Some(Item {
            what: format!(
                "{} {} ({})",
                authority.kind, authority.generation, authority.state
            ),
            kind,
            not_before: authority.not_before.as_ref().map(|time| time.0.into()),
            not_after: authority.not_after.as_ref()?.0.into(),
            remedy: remedy.to_owned(),
        })
    })
    .collect()
}

const ROTATE: &str = "`bulkhead ca rotate-root` replaces it with no restart; an upstream's root is \
                      replaced there";
const ROTATING: &str = "a rotation is under way: `bulkhead ca rotate-root` shows what it waits for";
const SEE_CA: &str = "the CA renews it by itself: see `bulkhead ca status`, its upstream among it, \
                      and the CA's log";

const SEE_CONTROL: &str = "control renews it by itself at the CA: see its log, and \
                           `bulkhead ca log --refused`";

/// The webhook's certificate and its CAs.
pub(super) async fn webhook(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    const CHECK: &str = "certificates";
    let (name, keys) = WEBHOOK;
    let secrets: Api<Secret> = look.in_system_namespace();
    let Some(secret) = secrets.get_opt(name).await? else {
        let message = format!("there is no Secret {name}");
        return Ok(vec![Finding::skipped(CHECK, message)]);
    };
    let mut data = secret.data.unwrap_or_default();
    let found = keys.iter().flat_map(|key| {
        let text = data
            .remove(*key)
            .and_then(|it| String::from_utf8(it.0).ok());
        let what = format!("{key} of the Secret {name}");
        let text = text.unwrap_or_default();
        let remedy = "the webhook renews it by itself while it runs: see its log";
        of_pem(look, CHECK, &what, Kind::Renewed, &text, remedy)
    });
    Ok(found.collect())
}

/// What is to be said of each certificate of a text.
fn of_pem(
    look: &Look<'_>,
    check: &'static str,
    what: &str,
    kind: Kind,
    pem: &str,
    remedy: &str,
) -> Vec<Finding> {
    let certificates = match Certificate::all_from_pem(pem, MAX_PEM) {
        Ok(certificates) => certificates,
        Err(error) => {
            let message = format!("{what} cannot be read: {error}");
            return vec![Finding::failed(check, message)];
        }
    };
    let items = certificates.iter().map(|certificate| Item {
        what: what.to_owned(),
        kind,
        not_before: Some(certificate.not_before()),
        not_after: certificate.not_after(),
        remedy: remedy.to_owned(),
    });
    items
        .map(|item| item.judge(check, look.expires_within, look.now))
        .collect()
}

/// The certificate that each replica of the CA and of control shows its callers.
/// Both renew it by themselves, and nobody sees that one did not but those who
/// can no longer call it.
pub(super) async fn shown(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let programs = [(replicas::CA, SEE_CA), (replicas::CONTROL, SEE_CONTROL)];
    let found = programs.map(|(program, remedy)| shown_by(look, program, remedy));
    Ok(futures::future::join_all(found).await.concat())
}

async fn shown_by(look: &Look<'_>, program: &str, remedy: &str) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let pods = match replicas::pods_of(look.cluster, program).await {
        Ok(pods) => pods,
        Err(error) => return vec![skipped(CHECK, &error)],
    };
    let shown = futures::future::join_all(pods.iter().map(|pod| async move {
        let name = pod.name_any();
        let of = (look.cluster.system_namespace.as_str(), name.as_str());
        let certificate = match timeout(admin::ANSWER, served(look, of)).await {
            Ok(Ok(certificate)) => certificate,
            Ok(Err(error)) => return Finding::skipped(CHECK, in_the_way(&name, &error)),
            Err(_) => {
                let message = format!("{name} took too long to show its certificate");
                return Finding::skipped(CHECK, message);
            }
        };
        let item = Item {
            what: format!("the certificate that {name} shows its callers"),
            kind: Kind::Renewed,
            not_before: Some(certificate.not_before()),
            not_after: certificate.not_after(),
            remedy: remedy.to_owned(),
        };
        item.judge(CHECK, look.expires_within, look.now)
    }));
    shown.await
}

/// What a program shows in a handshake; nothing else is sent. Control asks for a
/// certificate too, and ends the connection for want of one after that.
async fn served(look: &Look<'_>, pod: (&str, &str)) -> anyhow::Result<Certificate> {
    admin::through(look.cluster, pod, ports::CONTROL_PLANE, async |stream| {
        // Whether it is to be believed is for its callers to say, by their roots.
        let connector = TlsConnector::from(probe::client_config()?);
        // Neither serves by names.
        let name = ServerName::try_from("bulkhead")?;
        let stream = connector.connect(name, stream).await?;
        let (_, connection) = stream.get_ref();
        let shown = connection.peer_certificates().unwrap_or_default();
        let leaf = shown.first().cloned();
        let leaf = leaf.ok_or_else(|| anyhow::anyhow!("it showed no certificate"))?;
        Ok(Certificate::from_der(leaf.into_owned())?)
    })
    .await
}

/// The workloads' certificates, as their sidecars say.
pub(super) async fn workloads(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    const CHECK: &str = "workloads";
    let pods = match mesh_pods(look.cluster, &Scope::everything(look.cluster)).await {
        Ok(pods) => pods,
        Err(error) => return Ok(vec![skipped(CHECK, &error)]),
    };
    let runs = pods.iter().filter(|pod| pod.sidecar == Presence::Running);
    let running = runs.clone().count();
    let asked = runs.take(ASKED).map(|pod| async move {
        let of = (pod.namespace.as_str(), pod.name.as_str());
        let said = holding::said(look.cluster, of).await;
        (format!("{}/{}", pod.namespace, pod.name), said)
    });
    let answers: Vec<_> = futures::stream::iter(asked)
        .buffer_unordered(admin::AT_ONCE)
        .collect()
        .await;
    let (mut findings, mut without, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
    let mut fine: Vec<SystemTime> = Vec::new();
    for (pod, said) in answers {
        let certificate = match said {
            Ok(said) => said.certificate,
            Err(error) => {
                unseen.push(in_the_way(&pod, &error));
                continue;
            }
        };
        let Some(certificate) = certificate else {
            without.push(pod);
            continue;
        };
        let not_after = moment::at(certificate.not_after);
        let item = Item {
            remedy: format!(
                "its sidecar renews it by itself: `bulkhead secret -n {} {}` says what is in the way",
                pod.split('/').next().unwrap_or_default(),
                pod.split('/').next_back().unwrap_or_default(),
            ),
            what: format!("the certificate of {pod}"),
            kind: Kind::Renewed,
            not_before: Some(moment::at(certificate.not_before)),
            not_after,
        };
        let finding = item.judge(CHECK, look.expires_within, look.now);
        if finding.is_problem() {
            findings.push(finding);
        } else {
            fine.push(not_after);
        }
    }
    without.sort();
    unseen.sort();
    if !without.is_empty() {
        let message = format!("no certificate yet: {}", a_few(&without));
        findings.push(
            Finding::failed(CHECK, message)
                .remedy("see the sidecars' logs, and `bulkhead ca log --refused`"),
        );
    }
    if !unseen.is_empty() {
        findings.push(Finding::skipped(CHECK, a_few(&unseen)));
    }
    if running > ASKED {
        let message = format!("{ASKED} of {running} sidecars were asked");
        findings.push(Finding::notice(CHECK, message));
    }
    if let Some(first) = fine.iter().min() {
        let message = format!(
            "{} certificates are renewed in time; the first expires {}",
            fine.len(),
            moment::relative(*first, look.now)
        );
        findings.push(Finding::ok(CHECK, message));
    } else if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no sidecar runs"));
    }
    Ok(findings)
}

fn in_the_way(pod: &str, error: &anyhow::Error) -> String {
    format!("{pod} could not be asked: {}", error::describe(error))
}

fn skipped(check: &'static str, error: &anyhow::Error) -> Finding {
    match error.downcast_ref::<kube::Error>() {
        Some(cause) => Finding::of_error(check, cause),
        None => Finding::skipped(check, error::describe(error)),
    }
}

#[cfg(test)]
mod tests;
