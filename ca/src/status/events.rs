//! What has happened between the status that is stored and the next one.
//!
//! It is told by the stored one, so that a replica that takes over tells what its
//! predecessor did not come to.

use bulkhead_crds::certificate_authority::{
    Authority, AuthorityKind, AuthorityState, CertificateAuthorityStatus, Phase, UpstreamState,
};

/// Something worth an Event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Occurrence {
    /// A word in upper camel case.
    pub(super) reason: &'static str,
    pub(super) note: String,
    /// Somebody has to do something.
    pub(super) is_warning: bool,
}

/// What is new in `after`.
pub(super) fn between(
    before: &CertificateAuthorityStatus,
    after: &CertificateAuthorityStatus,
) -> Vec<Occurrence> {
    // Nothing is stored yet: the first authorities are no news.
    if before.authorities.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if before.target_generation > after.target_generation {
        let target = after.target_generation.unwrap_or_default();
        let note = format!("the root that is to sign is {target} again");
        found.push(normal("RotationUndone", note));
    }
    for authority in &after.authorities {
        let was = before
            .authorities
            .iter()
            .find(|was| was.kind == authority.kind && was.generation == authority.generation);
        found.extend(step(authority, was.map(|was| was.state)));
    }
    if after.phase == Some(Phase::Blocked) && before.phase != Some(Phase::Blocked) {
        let message = after.message.clone().unwrap_or_default();
        found.push(warning("RotationBlocked", message));
    }
    found.extend(upstream(before, after));
    found
}

/// What became of one authority since it was in state `was`.
fn step(authority: &Authority, was: Option<AuthorityState>) -> Option<Occurrence> {
    use AuthorityState::{Active, Prepared, Published, Retired};
    let generation = authority.generation;
    if was == Some(authority.state) {
        return None;
    }
    let (reason, note) = match (authority.kind, authority.state) {
        (AuthorityKind::Root, Prepared) => (
            "RootPrepared",
            format!("root {generation} is made, and kept"),
        ),
        // One that signed before has no news: it waits to leave.
        (AuthorityKind::Root, Published) if was == Some(Active) => return None,
        (AuthorityKind::Root, Published) => (
            "RootPublished",
            format!("root {generation} is in the trust bundle, and signs nothing yet"),
        ),
        (AuthorityKind::Root, Active) => ("RootActivated", format!("root {generation} signs")),
        (AuthorityKind::Root, Retired) => (
            "RootRetired",
            format!("root {generation} has left the trust bundle, and its key is destroyed"),
        ),
        (AuthorityKind::Intermediate, Active) => (
            "IntermediateRotated",
            format!("intermediate {generation} signs workloads' certificates"),
        ),
        (AuthorityKind::Intermediate | AuthorityKind::Jwt, _) => return None,
    };
    Some(normal(reason, note))
}

fn upstream(
    before: &CertificateAuthorityStatus,
    after: &CertificateAuthorityStatus,
) -> Option<Occurrence> {
    let state = |status: &CertificateAuthorityStatus| Some(status.upstream.as_ref()?.state);
    match (state(before), state(after)?) {
        (Some(UpstreamState::Failing), UpstreamState::Ok) => Some(normal(
            "UpstreamRecovered",
            "the upstream issuer signs again".to_owned(),
        )),
        (None | Some(UpstreamState::Ok), UpstreamState::Failing) => {
            let message = after.upstream.as_ref()?.message.clone();
            Some(warning("UpstreamFailing", message.unwrap_or_default()))
        }
        _ => None,
    }
}

fn normal(reason: &'static str, note: String) -> Occurrence {
    Occurrence {
        reason,
        note,
        is_warning: false,
    }
}

pub(super) fn warning(reason: &'static str, note: String) -> Occurrence {
    Occurrence {
        is_warning: true,
        ..normal(reason, note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_crds::certificate_authority::{Upstream, UpstreamKind, UpstreamSigns};

    fn root(generation: u32, state: AuthorityState) -> Authority {
        Authority {
            kind: AuthorityKind::Root,
            generation,
            state,
            fingerprint: generation.to_string(),
            serial: None,
            not_before: None,
            not_after: None,
            key_type: None,
            issuer: None,
        }
    }

    fn status(target: u32, authorities: Vec<Authority>) -> CertificateAuthorityStatus {
        CertificateAuthorityStatus {
            target_generation: Some(target),
            authorities,
            ..CertificateAuthorityStatus::default()
        }
    }

    fn reasons(
        before: &CertificateAuthorityStatus,
        after: &CertificateAuthorityStatus,
    ) -> Vec<&'static str> {
        let all = between(before, after);
        all.iter().map(|occurrence| occurrence.reason).collect()
    }

    #[test]
    fn each_step_of_a_rotation_is_an_event() {
        use AuthorityState::{Active, Prepared, Published, Retired};
        let steps = [
            status(1, vec![root(1, Active)]),
            status(2, vec![root(1, Active), root(2, Prepared)]),
            status(2, vec![root(1, Active), root(2, Published)]),
            status(2, vec![root(1, Published), root(2, Active)]),
            status(2, vec![root(1, Retired), root(2, Active)]),
        ];
        let told: Vec<_> = steps
            .windows(2)
            .flat_map(|pair| reasons(&pair[0], &pair[1]))
            .collect();
        assert_eq!(
            told,
            [
                "RootPrepared",
                "RootPublished",
                "RootActivated",
                "RootRetired"
            ]
        );
        let empty = CertificateAuthorityStatus::default();
        assert_eq!(reasons(&empty, &steps[0]).len(), 0, "an installation");
        assert_eq!(
            reasons(&steps[1], &steps[1]).len(),
            0,
            "nothing is told twice"
        );
    }

    #[test]
    fn to_go_back_is_an_event() {
        use AuthorityState::{Active, Published, Retired};
        let before = status(2, vec![root(1, Active), root(2, Published)]);
        let after = status(1, vec![root(1, Active), root(2, Retired)]);
        assert_eq!(reasons(&before, &after), ["RotationUndone", "RootRetired"]);
    }

    #[test]
    fn what_needs_somebody_is_a_warning() {
        let upstream = |state| Upstream {
            kind: UpstreamKind::Vault,
            signs: UpstreamSigns::Intermediate,
            state,
            message: Some("permission denied".to_owned()),
            last_success: None,
        };
        let well = CertificateAuthorityStatus {
            upstream: Some(upstream(UpstreamState::Ok)),
            ..status(1, vec![root(1, AuthorityState::Active)])
        };
        let ill = CertificateAuthorityStatus {
            phase: Some(Phase::Blocked),
            upstream: Some(upstream(UpstreamState::Failing)),
            ..well.clone()
        };
        let told = between(&well, &ill);
        assert!(told.iter().all(|occurrence| occurrence.is_warning));
        assert_eq!(reasons(&well, &ill), ["RotationBlocked", "UpstreamFailing"]);
        assert_eq!(told[1].note, "permission denied");
        assert_eq!(reasons(&ill, &well), ["UpstreamRecovered"]);
    }
}
