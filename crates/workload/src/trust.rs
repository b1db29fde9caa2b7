//! Which trust bundle to hold: the CA's answers have one, and so has a file that
//! changes between two certificates. Either may be behind the other.
//!
//! They are not equal. An answer comes over a connection on which the CA proved
//! who it is; a file says what whoever may write it says, and in Kubernetes that
//! is everybody who may write ConfigMaps in the namespace. So a file is believed
//! at once, because rotations depend on that, but only about versions that there
//! can be by now, and only until the CA has been asked.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_pki::bundle::TrustBundle;

/// How far in the future the version of a bundle may be, which is the time at
/// which the CA made it: clocks differ, and changes that follow each other
/// within a second are counted on.
const AHEAD: Duration = Duration::from_secs(600);

/// How far a replica of the CA may be behind the others. What none of them knows
/// of for longer is none of theirs.
const BEHIND: Duration = Duration::from_secs(600);

/// Where a bundle came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The CA, with a certificate.
    Authority,
    /// The file that the kubelet, or whoever runs the machine, keeps up to date.
    File,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::File => "file",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a bundle that is offered is to follow the one that is held.
///
/// Where both say which version they are, the greater one does: a source that is
/// behind takes nothing back. Where one does not, nobody can tell which of two
/// that differ is later; then a source that says something new is believed, and
/// one that goes on saying what it said is not.
pub(crate) fn supersedes(offered: &TrustBundle, held: &TrustBundle, is_news: bool) -> bool {
    match (offered.sequence(), held.sequence()) {
        (0, _) | (_, 0) => is_news && !is_same(offered, held),
        (offered, held) => offered > held,
    }
}

/// Whether there can be such a version by now: it is not of the future, or the
/// CA itself said one that is as late.
pub(crate) fn is_plausible(offered: u64, vouched: u64, now: SystemTime) -> bool {
    made(offered.saturating_sub(vouched)).is_some_and(|ahead| ahead <= UNIX_EPOCH + AHEAD)
        || made(offered).is_some_and(|made| made <= now + AHEAD)
}

/// Whether an answer of the CA proves that it knows nothing of the version that
/// a file said: not by a replica that is merely behind, nor by one that is
/// further behind than the CA has been seen to be already.
pub(crate) fn refutes(answer: u64, held: u64, vouched: u64, authority_now: SystemTime) -> bool {
    let is_unknown = answer > 0 && answer < held && vouched < held && vouched <= answer;
    is_unknown && settles(held).is_none_or(|at| at <= authority_now)
}

/// When an answer tells whether a version that a file said is the CA's; none
/// where that was never in doubt, because it is of no time.
pub(crate) fn settles(held: u64) -> Option<SystemTime> {
    made(held)?.checked_add(BEHIND)
}

/// When the CA made a version.
fn made(sequence: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(sequence))
}

/// The same roots, and the same one signs.
fn is_same(one: &TrustBundle, other: &TrustBundle) -> bool {
    one.roots().certificates() == other.roots().certificates()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::identity::TrustDomain;
    use bulkhead_pki::authority::Authority;
    use bulkhead_pki::bundle::Roots;
    use std::time::{Duration, UNIX_EPOCH};

    fn bundles() -> [TrustBundle; 2] {
        let domain = TrustDomain::new("cluster.local").unwrap();
        [(); 2].map(|()| {
            let lifetime = Duration::from_secs(3600);
            let root = Authority::new_root(&domain, lifetime, UNIX_EPOCH + 1000 * lifetime);
            let roots = Roots::new([root.unwrap().certificate().clone()]).unwrap();
            TrustBundle::new(domain.clone(), roots)
        })
    }

    #[test]
    fn only_a_later_version_follows_where_both_are_known() {
        let [old, new] = bundles().map(|bundle| bundle.with_sequence(7));
        for is_news in [true, false] {
            assert!(!supersedes(&new, &old, is_news));
            assert!(supersedes(&new.clone().with_sequence(8), &old, is_news));
            assert!(!supersedes(&new.clone().with_sequence(6), &old, is_news));
        }
    }

    const NOON: u64 = 1_800_000_000;

    fn after(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOON + seconds)
    }

    #[test]
    fn a_version_of_the_future_is_none_unless_the_ca_said_one_like_it() {
        for sequence in [1, NOON, NOON + 600] {
            assert!(is_plausible(sequence, 0, after(0)), "{sequence}");
        }
        for sequence in [NOON + 601, 2 * NOON, u64::MAX] {
            assert!(!is_plausible(sequence, 0, after(0)), "{sequence}");
            assert!(!is_plausible(sequence, NOON, after(0)), "{sequence}");
        }
        // A clock of the CA's that was wrong once.
        assert!(is_plausible(2 * NOON + 1, 2 * NOON, after(0)));
        assert!(!is_plausible(2 * NOON + 601, 2 * NOON, after(0)));
    }

    #[test]
    fn an_answer_takes_back_what_no_replica_can_be_so_far_behind_as_not_to_know() {
        let (before, held) = (NOON - 100, NOON);
        assert!(
            !refutes(before, held, before, after(599)),
            "it may be behind"
        );
        assert!(refutes(before, held, before, after(600)));
        assert!(refutes(before, u64::MAX, before, after(0)), "of no time");
        assert!(!refutes(held, held, before, after(600)), "it knows it");
        assert!(!refutes(before, held, held, after(600)), "it knew it");
        let far_behind = before - 1;
        assert!(!refutes(far_behind, held, before, after(600)));
        assert!(!refutes(0, held, 0, after(600)), "it says nothing");
    }

    #[test]
    fn a_source_without_versions_is_believed_when_it_says_something_new() {
        let [old, new] = bundles();
        for (offered, held) in [
            (new.clone(), old.clone()),
            (new.clone().with_sequence(7), old.clone()),
            (new.clone(), old.clone().with_sequence(7)),
        ] {
            assert!(supersedes(&offered, &held, true));
            assert!(!supersedes(&offered, &held, false));
        }
        assert!(!supersedes(&old.clone(), &old, true), "it is the same");
    }
}
