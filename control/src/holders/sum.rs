//! All reports against all pods: who holds the trust bundle, and who does not.

use std::collections::HashMap;
use std::time::SystemTime;

use bulkhead_crds::certificate_authority::{MISSING_NAMED, MissingProxy, Proxies};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::report::{Report, short};
use crate::object::{Key, Name};

/// What proxies are to hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Expected {
    /// The id of the trust bundle.
    pub(crate) bundle: String,
    /// The fingerprint of the root that signs.
    pub(crate) signing_root: String,
}

/// Who is to hold it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Holder {
    pub(crate) pod: Key,
    pub(crate) uid: Name,
    pub(crate) kind: HolderKind,
}

/// Whose certificate it is that a holder shows to others.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum HolderKind {
    /// The proxy's beside an application.
    Proxy,
    /// A replica of control's own, which every proxy verifies.
    Control,
}

/// What is known of one holder.
#[derive(Clone, Copy)]
enum Known<'a> {
    Holds(&'a str, &'a str),
    /// It is connected, and says nothing.
    Silent,
}

/// Sums up what these hold.
pub(crate) fn sum(
    mut holders: Vec<Holder>,
    reports: &[Report],
    expected: &Expected,
    now: SystemTime,
) -> Proxies {
    holders.sort_unstable();
    let known = known(reports, expected);
    let (mut holding, mut renewed) = (0, 0);
    let (mut without, mut to_renew) = (Vec::new(), Vec::new());
    for holder in &holders {
        let known = known.get(short(&holder.uid)).copied();
        let (holds, is_renewed) = match known {
            Some(Known::Holds(bundle, root)) => {
                (bundle == expected.bundle, root == expected.signing_root)
            }
            Some(Known::Silent) | None => (false, false),
        };
        holding += u32::from(holds);
        renewed += u32::from(is_renewed);
        let missing = || MissingProxy {
            pod: holder.pod.to_string(),
            reason: reason(holder.kind, known, expected),
        };
        if !holds && without.len() < MISSING_NAMED {
            without.push(missing());
        } else if holds && !is_renewed && to_renew.len() < MISSING_NAMED {
            to_renew.push(missing());
        }
    }
    without.append(&mut to_renew);
    without.truncate(MISSING_NAMED);
    let total = u32::try_from(holders.len()).unwrap_or(u32::MAX);
    Proxies {
        total,
        holding,
        renewed,
        summary: format!("{holding}/{total}"),
        bundle: expected.bundle.clone(),
        signing_root: expected.signing_root.clone(),
        missing: without,
        at: Time(now.try_into().unwrap_or_default()),
    }
}

/// By pod. A proxy that comes back is in two reports for a moment, or twice in
/// one: until they agree, the word counts that lacks more. So does it where another
/// pod of the same identity speaks in its name.
fn known<'a>(reports: &'a [Report], expected: &Expected) -> HashMap<&'a str, Known<'a>> {
    let lacks = |known: &Known<'_>| match known {
        Known::Silent => 3,
        Known::Holds(bundle, _) if *bundle != expected.bundle => 2,
        Known::Holds(_, root) if *root != expected.signing_root => 1,
        Known::Holds(..) => 0,
    };
    let mut all = HashMap::new();
    let said = reports.iter().flat_map(|report| {
        let groups = report.groups().iter().flat_map(|group| {
            let known = Known::Holds(&group.bundle, &group.signing_root);
            group.pods.iter().map(move |pod| (pod, known))
        });
        let silent = report.silent().iter().map(|pod| (pod, Known::Silent));
        groups.chain(silent)
    });
    for (pod, known) in said {
        let entry = all.entry(pod.as_str()).or_insert(known);
        if lacks(&known) > lacks(entry) {
            *entry = known;
        }
    }
    all
}

fn reason(kind: HolderKind, known: Option<Known<'_>>, expected: &Expected) -> String {
    match known {
        None => match kind {
            HolderKind::Proxy => "its proxy is not connected to control",
            HolderKind::Control => {
                "this replica of control does not report: it is older than the one that sums up, \
                 or cannot reach the API server"
            }
        }
        .to_owned(),
        Some(Known::Silent) => match kind {
            HolderKind::Proxy => {
                "its proxy does not say what it holds: it is older than control; restart the pod"
            }
            HolderKind::Control => "this replica of control has no certificate yet",
        }
        .to_owned(),
        Some(Known::Holds(bundle, _)) if bundle != expected.bundle => {
            format!("it holds another trust bundle, {bundle}")
        }
        Some(Known::Holds(_, root)) => {
            format!("its certificate is below another root, {root}, until it is renewed")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::held::Held;
    use std::time::UNIX_EPOCH;

    const NOW: SystemTime = UNIX_EPOCH;

    fn expected() -> Expected {
        Expected {
            bundle: "new".to_owned(),
            signing_root: "root".to_owned(),
        }
    }

    fn report(holders: &[(&str, Option<(&str, &str)>)]) -> Report {
        let held = |(bundle, root): (&str, &str)| Held {
            bundle: bundle.to_owned(),
            signing_root: root.to_owned(),
            certificate_expires: UNIX_EPOCH,
        };
        let holders = holders.iter();
        let holders = holders.map(|(uid, said)| ((*uid).into(), said.map(held)));
        Report::new(NOW, &holders.collect::<Vec<_>>())
    }

    fn pods(names: &[&str]) -> Vec<Holder> {
        let pod = |name: &&str| Holder {
            pod: Key::new("shop", name),
            uid: (*name).into(),
            kind: HolderKind::Proxy,
        };
        names.iter().map(pod).collect()
    }

    #[test]
    fn each_proxy_that_lacks_something_is_named_with_the_reason() {
        let reports = [
            report(&[("a", Some(("new", "root"))), ("b", Some(("old", "root")))]),
            report(&[("c", None), ("d", Some(("new", "before")))]),
        ];
        let sum = sum(pods(&["e", "d", "c", "b", "a"]), &reports, &expected(), NOW);
        assert_eq!((sum.total, sum.holding, sum.renewed), (5, 2, 2));
        assert_eq!(sum.summary, "2/5");
        let missing: Vec<_> = sum
            .missing
            .iter()
            .map(|missing| (missing.pod.as_str(), missing.reason.as_str()))
            .collect();
        let [b, c, e, d] = missing[..] else {
            panic!("{missing:?}")
        };
        assert_eq!(b, ("shop/b", "it holds another trust bundle, old"));
        assert!(
            c.0 == "shop/c" && c.1.contains("older than control"),
            "{c:?}"
        );
        assert_eq!(e, ("shop/e", "its proxy is not connected to control"));
        assert!(d.0 == "shop/d" && d.1.contains("before"), "{d:?}");
    }

    #[test]
    fn of_two_replicas_that_disagree_the_one_counts_that_lacks_more() {
        let (has, lacks) = (
            report(&[("a", Some(("new", "root")))]),
            report(&[("a", Some(("old", "root")))]),
        );
        for reports in [[has.clone(), lacks.clone()], [lacks, has]] {
            assert_eq!(sum(pods(&["a"]), &reports, &expected(), NOW).holding, 0);
        }
    }

    #[test]
    fn nobody_speaks_for_a_proxy_that_says_itself_what_it_lacks() {
        let said = [("a", Some(("old", "before"))), ("a", Some(("new", "root")))];
        for said in [said, [said[1], said[0]]] {
            let sum = sum(pods(&["a"]), &[report(&said)], &expected(), NOW);
            assert_eq!((sum.holding, sum.renewed), (0, 0));
        }
    }

    #[test]
    fn proxies_of_pods_that_are_gone_count_for_nothing() {
        let reports = [report(&[("a", Some(("old", "root")))])];
        let sum = sum(Vec::new(), &reports, &expected(), NOW);
        assert_eq!((sum.total, sum.missing.len()), (0, 0));
    }

    #[test]
    fn a_replica_of_control_counts_as_every_proxy_does() {
        let replica = |name: &str| Holder {
            pod: Key::new("bulkhead-system", name),
            uid: name.into(),
            kind: HolderKind::Control,
        };
        let said = report(&[
            ("renewed", Some(("new", "root"))),
            ("behind", Some(("new", "before"))),
            ("starting", None),
        ]);
        let replicas = ["renewed", "behind", "starting", "gone"].map(replica);
        let sum = sum(replicas.into(), &[said], &expected(), NOW);
        assert_eq!((sum.total, sum.holding, sum.renewed), (4, 2, 1));
        let reason = |name: &str| {
            let found = sum.missing.iter().find(|one| one.pod.ends_with(name));
            found.unwrap().reason.as_str()
        };
        assert!(reason("behind").contains("another root"));
        assert!(reason("starting").contains("no certificate yet"));
        assert!(reason("gone").contains("does not report"));
    }

    #[test]
    fn of_many_that_lack_it_a_hundred_are_named() {
        let names: Vec<_> = (0..250).map(|number| number.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let sum = sum(pods(&names), &[], &expected(), NOW);
        assert_eq!((sum.total, sum.missing.len()), (250, MISSING_NAMED));
    }
}
