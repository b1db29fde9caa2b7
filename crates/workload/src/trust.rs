//! Which trust bundle to hold: the CA's answers have one, and so has a file that
//! changes between two certificates. Either may be behind the other.

use std::fmt;

use bulkhead_pki::bundle::TrustBundle;

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
