//! The issuer's status in the form of the object's.

use std::time::{Duration, SystemTime};

use bulkhead_crds::certificate_authority::{
    Authority, AuthorityKind, AuthorityState, CertificateAuthorityStatus, Phase, TrustBundleStatus,
    Upstream, UpstreamKind, UpstreamState, condition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::expiry::{self, urgency};
use crate::issuer::status::{AuthorityStatus, Status, UpstreamStatus};

/// Everything that the CA writes: all of the status but what control does.
/// `before` is what is stored, for when conditions changed; `generation` is of
/// the spec that the issuer has seen.
pub(super) fn status(
    status: &Status,
    generation: Option<i64>,
    before: &CertificateAuthorityStatus,
    now: SystemTime,
) -> CertificateAuthorityStatus {
    let authorities: Vec<_> = status.authorities.iter().map(authority).collect();
    let signing = authorities.iter().filter(|authority| signs(authority));
    let expires = signing
        .filter_map(|authority| authority.not_after.clone())
        .min();
    let conditions = [
        ready(&authorities, now),
        rotation(status),
        expiring(&authorities, now),
    ];
    CertificateAuthorityStatus {
        observed_generation: generation,
        phase: Some(status.phase),
        message: Some(status.message.clone()),
        root_generation: Some(number(status.root_generation)),
        target_generation: Some(number(status.target_generation)),
        expires,
        trust_bundle: Some(TrustBundleStatus {
            id: status.trust_bundle.id.to_string(),
            sequence: status.trust_bundle.sequence,
            roots: status.trust_bundle.roots.try_into().unwrap_or(u32::MAX),
        }),
        authorities,
        upstream: Some(upstream(&status.upstream)),
        proxies: None,
        conditions: conditions
            .map(|found| found.condition(&before.conditions, generation, now))
            .into(),
    }
}

/// A condition that has no times yet.
struct Found {
    type_: &'static str,
    is_true: bool,
    reason: &'static str,
    message: String,
}

impl Found {
    /// With the time of its last change, by what was known before.
    fn condition(self, known: &[Condition], generation: Option<i64>, now: SystemTime) -> Condition {
        let status = if self.is_true { "True" } else { "False" };
        let before = known
            .iter()
            .find(|known| known.type_ == self.type_ && known.status == status);
        Condition {
            last_transition_time: before
                .map_or_else(|| time(now), |before| before.last_transition_time.clone()),
            message: self.message,
            observed_generation: generation,
            reason: self.reason.to_owned(),
            status: status.to_owned(),
            type_: self.type_.to_owned(),
        }
    }
}

fn ready(authorities: &[Authority], now: SystemTime) -> Found {
    let signing = |kind| {
        let signs = move |authority: &&Authority| signs(authority) && authority.kind == kind;
        authorities.iter().filter(signs)
    };
    let is_valid = |authority: &Authority| {
        let ends = authority.not_after.as_ref();
        ends.is_some_and(|ends| expiry::time(ends) > now)
    };
    // Where an upstream signs each leaf, there is no intermediate of our own.
    let is_true = signing(AuthorityKind::Root).any(is_valid)
        && signing(AuthorityKind::Intermediate).all(is_valid);
    let (reason, message) = match is_true {
        true => ("Issuing", "certificates are issued"),
        false => ("NothingSigns", "no authority that is valid signs"),
    };
    Found {
        type_: condition::READY,
        is_true,
        reason,
        message: message.to_owned(),
    }
}

fn rotation(status: &Status) -> Found {
    Found {
        type_: condition::ROTATION_PROGRESSING,
        is_true: !matches!(status.phase, Phase::Settled | Phase::Blocked),
        reason: status.phase.as_str(),
        message: status.message.clone(),
    }
}

fn expiring(authorities: &[Authority], now: SystemTime) -> Found {
    let urgent = authorities
        .iter()
        .filter_map(|authority| Some((urgency(authority, now)?, authority)))
        .max_by_key(|(urgency, _)| *urgency);
    Found {
        type_: condition::EXPIRING,
        is_true: urgent.is_some(),
        reason: urgent.map_or("LongEnough", |_| "AuthorityExpiring"),
        message: urgent.map_or_else(
            || "every authority that signs has long enough".to_owned(),
            |(_, authority)| expiry::sentence(authority, now),
        ),
    }
}

fn signs(authority: &Authority) -> bool {
    authority.state == AuthorityState::Active && authority.kind != AuthorityKind::Jwt
}

fn authority(status: &AuthorityStatus) -> Authority {
    Authority {
        kind: status.kind,
        generation: number(status.generation),
        state: status.state,
        fingerprint: status.fingerprint.clone(),
        serial: Some(status.serial.clone()),
        not_before: Some(time(status.not_before)),
        not_after: Some(time(status.not_after)),
        key_type: Some(status.key_type.clone()),
        issuer: status.issuer.map(|generation| format!("root {generation}")),
    }
}

fn upstream(status: &UpstreamStatus) -> Upstream {
    Upstream {
        kind: match status.kind {
            "files" => UpstreamKind::Files,
            "cert-manager" => UpstreamKind::CertManager,
            "vault" => UpstreamKind::Vault,
            _ => UpstreamKind::SelfSigned,
        },
        signs: status.signs,
        state: match status.failure {
            None => UpstreamState::Ok,
            Some(_) => UpstreamState::Failing,
        },
        message: status.failure.clone(),
        last_success: status.last_success.map(time),
    }
}

fn number(generation: u64) -> u32 {
    u32::try_from(generation).unwrap_or(u32::MAX)
}

/// To the second, as the API server keeps it: what is compared later must not
/// differ by what was dropped.
fn time(time: SystemTime) -> Time {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = Duration::from_secs(since.unwrap_or_default().as_secs());
    Time(
        (SystemTime::UNIX_EPOCH + seconds)
            .try_into()
            .unwrap_or_default(),
    )
}
