//! Single steps of a root rotation; `tests/ca/rotation` has whole ones.

use super::*;
use crate::config::Lifetimes;
use crate::rotation::holders::HolderReport;
use crate::rotation::orders::Order;
use crate::rotation::slots::Authority;
use std::time::SystemTime;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + 50 * YEAR
}

fn authority(generation: u64, state: State, made: SystemTime) -> Authority {
    Authority {
        generation,
        state,
        fingerprint: generation.to_string(),
        serial: generation.to_string(),
        key_type: "P-256".to_owned(),
        made,
        not_before: made,
        not_after: made + YEAR,
        stopped: None,
    }
}

/// Root 1 signs, and root 2 was made and published at noon.
fn published() -> Slots {
    let pair = |generation, state, below, made| {
        let root = Root {
            authority: authority(generation, state, made),
            has_key: true,
            listed: false,
            leaf_life: Some(DAY),
        };
        let intermediate = Intermediate {
            authority: authority(generation, below, made),
            root: generation,
            own: false,
        };
        (root, intermediate)
    };
    let old = pair(1, State::Active, State::Active, noon() - DAY);
    let new = pair(2, State::Published, State::Published, noon());
    Slots {
        sequence: 2,
        automatic: None,
        upstream: None,
        roots: vec![old.0, new.0],
        intermediates: vec![old.1, new.1],
        token_keys: Vec::new(),
    }
}

/// Everybody who says anything holds and has what is wanted.
fn facts(after: Duration, silent: Option<Duration>) -> Facts {
    let now = noon() + after;
    Facts {
        now,
        settled_for: HOUR,
        settle: Duration::from_secs(30),
        wanted: Some(Order {
            root_generation: Some(2),
            force_generation: None,
        }),
        holders: HolderReport {
            at: Some(now),
            silent,
            ..HolderReport::default()
        },
        lifetimes: Lifetimes {
            default: DAY,
            max: DAY,
            root: YEAR,
            intermediate: YEAR,
        },
        upstream: None,
    }
}

#[test]
fn who_never_says_what_it_holds_is_given_time_to_adopt_a_root_and_to_leave_one() {
    let switch = Step::ActivateRoot {
        root: 2,
        intermediate: 2,
    };
    let mut slots = published();
    assert_eq!(next(&slots, &facts(HOUR, None)), Ok(switch.clone()));
    let waiting = next(&slots, &facts(HOUR, Some(2 * HOUR))).unwrap_err();
    assert_eq!(waiting.phase, Phase::Publishing);
    assert_eq!(next(&slots, &facts(3 * HOUR, Some(2 * HOUR))), Ok(switch));

    slots.activate_root(2, 2, noon() + 3 * HOUR);
    let retire = Step::RetireRoot { generation: 1 };
    assert_eq!(next(&slots, &facts(4 * HOUR, None)), Ok(retire.clone()));
    let waiting = next(&slots, &facts(DAY, Some(2 * HOUR))).unwrap_err();
    assert_eq!(waiting.phase, Phase::Renewing);
    assert_eq!(
        next(&slots, &facts(DAY + 4 * HOUR, Some(2 * HOUR))),
        Ok(retire)
    );
}

#[test]
fn to_go_on_without_some_is_said_of_one_root_and_not_of_going_back_to_it() {
    let mut slots = published();
    let lacks = Facts {
        wanted: Some(Order {
            root_generation: Some(2),
            force_generation: Some(2),
        }),
        holders: HolderReport {
            at: Some(noon() + HOUR),
            total: 2,
            holding: 1,
            ..HolderReport::default()
        },
        ..facts(HOUR, None)
    };
    let switch = Step::ActivateRoot {
        root: 2,
        intermediate: 2,
    };
    assert_eq!(next(&slots, &lacks), Ok(switch));
    // It signed, and root 3 after it; now it is to sign again.
    slots.activate_root(2, 2, noon());
    let mut third = published();
    for (root, intermediate) in third.roots.drain(1..).zip(third.intermediates.drain(1..)) {
        let (mut root, mut intermediate) = (root, intermediate);
        root.authority.generation = 3;
        intermediate.authority.generation = 3;
        intermediate.root = 3;
        slots.roots.push(root);
        slots.intermediates.push(intermediate);
    }
    slots.activate_root(3, 3, noon());
    let again = Intermediate {
        authority: authority(4, State::Published, noon()),
        root: 2,
        own: false,
    };
    slots.intermediates.push(again);
    let waiting = next(&slots, &lacks).unwrap_err();
    assert_eq!(waiting.phase, Phase::Blocked);
}

/// One workload of two has not renewed, so long after noon.
fn behind(after: Duration) -> Facts {
    Facts {
        holders: HolderReport {
            at: Some(noon() + after),
            total: 2,
            holding: 2,
            renewed: 1,
            ..HolderReport::default()
        },
        ..facts(after, None)
    }
}

/// The same, where somebody said to go on to the second root without it.
fn forced(after: Duration) -> Facts {
    Facts {
        wanted: Some(Order {
            root_generation: Some(2),
            force_generation: Some(2),
        }),
        ..behind(after)
    }
}

#[test]
fn a_workload_that_does_not_renew_blocks_the_end_of_a_rotation_and_can_be_left_behind() {
    let mut slots = published();
    slots.activate_root(2, 2, noon());
    let waiting = |after| next(&slots, &behind(after)).unwrap_err().phase;
    assert_eq!(waiting(DAY), Phase::Renewing, "it may have a certificate");
    assert_eq!(waiting(DAY + HOUR), Phase::Blocked);
    assert_eq!(
        next(&slots, &forced(DAY + HOUR)),
        Ok(Step::RetireRoot { generation: 1 })
    );
}

#[test]
fn a_clock_that_is_hours_ahead_of_everybodys_ends_nobodys_certificate() {
    let mut slots = published();
    slots.activate_root(2, 2, noon());
    let mut facts = forced(DAY + HOUR);
    // By the clock of who reports it is this late.
    facts.holders.at = Some(facts.now - 4 * HOUR);
    let waiting = next(&slots, &facts).unwrap_err();
    assert_eq!(waiting.phase, Phase::Retiring, "{}", waiting.message);
}

#[test]
fn what_was_issued_is_waited_for_although_less_would_be_issued_by_now() {
    let mut slots = published();
    slots.allow_leaf_life(3 * DAY);
    slots.activate_root(2, 2, noon());
    let waiting = next(&slots, &forced(DAY + HOUR)).unwrap_err();
    assert_eq!(waiting.phase, Phase::Renewing);
    let retire = Step::RetireRoot { generation: 1 };
    assert_eq!(next(&slots, &forced(3 * DAY + HOUR)), Ok(retire));
}

#[test]
fn a_longer_life_of_leaves_is_noted_before_any_has_it_and_a_shorter_one_takes_nothing_back() {
    let slots = published();
    let with = |max| {
        let mut facts = facts(HOUR, None);
        facts.lifetimes.max = max;
        crate::rotation::next(&slots, &facts)
    };
    assert_eq!(with(2 * DAY), Step::AllowLeafLife { life: 2 * DAY });
    let noted = |step| matches!(step, Step::AllowLeafLife { .. });
    assert!(!noted(with(DAY)));
    assert!(!noted(with(HOUR)));
}

#[test]
fn a_report_of_the_moment_of_a_change_is_not_one_of_after_it() {
    let mut slots = published();
    let reported = |settled_for, age| {
        let mut facts = facts(HOUR, None);
        facts.settled_for = settled_for;
        facts.holders.at = Some(facts.now - age);
        facts
    };
    let second = Duration::from_secs(1);
    let switch = Step::ActivateRoot {
        root: 2,
        intermediate: 2,
    };
    // Written a second after the change, and nothing since.
    let waiting = next(&slots, &reported(31 * second, 30 * second)).unwrap_err();
    assert_eq!(waiting.phase, Phase::Switching);
    let anew = reported(31 * second, 5 * second);
    assert_eq!(next(&slots, &anew), Ok(switch));
    // So it is before a root leaves.
    slots.activate_root(2, 2, noon());
    let waiting = next(&slots, &reported(31 * second, 30 * second)).unwrap_err();
    assert_eq!(waiting.phase, Phase::Retiring);
    let retire = Step::RetireRoot { generation: 1 };
    assert_eq!(next(&slots, &anew), Ok(retire));
}

#[test]
fn a_root_is_followed_when_its_time_comes_though_a_rotation_was_undone_before() {
    let mut slots = published();
    slots.roots[0].authority.not_after = noon() + YEAR;
    slots.retire_root(2, noon());
    let stays = |after| {
        let facts = Facts {
            wanted: Some(Order {
                root_generation: Some(1),
                force_generation: None,
            }),
            ..facts(after, None)
        };
        next(&slots, &facts)
    };
    let last = (YEAR + DAY) / 6;
    assert_eq!(stays(YEAR - last - DAY).unwrap_err().phase, Phase::Settled);
    let make = Step::MakeRoot {
        generation: 3,
        automatic: true,
    };
    assert_eq!(stays(YEAR - last + DAY), Ok(make));
}

#[test]
fn a_clock_that_leapt_beyond_the_end_of_a_root_does_not_change_roots_at_once() {
    let mut slots = published();
    slots.roots[1].authority.not_after = noon() + 10 * YEAR;
    slots.intermediates[1].authority.not_after = noon() + 10 * YEAR;
    let leapt = Facts {
        settled_for: Duration::ZERO,
        ..facts(2 * YEAR, None)
    };
    assert_eq!(next(&slots, &leapt).unwrap_err().phase, Phase::Switching);
    assert!(next(&slots, &facts(2 * YEAR, None)).is_ok());
}

#[test]
fn a_root_that_everybody_holds_is_about_to_sign_and_one_that_somebody_lacks_is_not() {
    let slots = published();
    let phase = |held: Facts| {
        let fresh = Facts {
            settled_for: Duration::ZERO,
            ..held
        };
        next(&slots, &fresh).unwrap_err().phase
    };
    assert_eq!(phase(facts(HOUR, None)), Phase::Switching);
    assert_eq!(phase(facts(HOUR, Some(2 * HOUR))), Phase::Publishing);
    let mut lacking = facts(HOUR, None);
    lacking.holders.total = 1;
    assert_eq!(phase(lacking), Phase::Publishing);
    let mut unknown = facts(HOUR, None);
    unknown.holders.at = None;
    assert_eq!(phase(unknown), Phase::Publishing);
}

#[test]
fn nothing_signs_or_leaves_before_all_replicas_follow_what_changed() {
    let mut slots = published();
    let settled = |seconds| Facts {
        settled_for: Duration::from_secs(seconds),
        ..facts(HOUR, None)
    };
    let phase = |slots: &Slots| next(slots, &settled(29)).unwrap_err().phase;
    assert_eq!(phase(&slots), Phase::Switching);
    let switch = Step::ActivateRoot {
        root: 2,
        intermediate: 2,
    };
    assert_eq!(next(&slots, &settled(30)), Ok(switch));
    slots.activate_root(2, 2, noon());
    assert_eq!(phase(&slots), Phase::Retiring);
    let retire = Step::RetireRoot { generation: 1 };
    assert_eq!(next(&slots, &settled(30)), Ok(retire));
}

#[test]
fn a_clock_that_leapt_to_the_end_of_a_root_makes_no_other_at_once() {
    let mut slots = published();
    slots.retire_root(2, noon());
    let leapt = |settled_for| Facts {
        settled_for,
        wanted: Some(Order::default()),
        ..facts(YEAR - 2 * DAY, None)
    };
    let waiting = next(&slots, &leapt(Duration::ZERO)).unwrap_err();
    assert_eq!(waiting.phase, Phase::Settled);
    assert!(matches!(
        next(&slots, &leapt(HOUR)),
        Ok(Step::MakeRoot { .. })
    ));
}

#[test]
fn a_root_that_is_not_valid_now_is_neither_given_out_nor_signs() {
    for state in [State::Prepared, State::Published] {
        for (begins, ends) in [(HOUR * 2, YEAR), (Duration::ZERO, HOUR)] {
            let mut slots = published();
            let root = &mut slots.roots[1].authority;
            root.state = state;
            root.not_before = noon() + begins;
            root.not_after = noon() + ends;
            let waiting = next(&slots, &facts(HOUR, None)).unwrap_err();
            assert_eq!(waiting.phase, Phase::Blocked, "{state:?}, {begins:?}");
            assert!(waiting.message.contains("root 2 is not valid now"));
        }
    }
}

#[test]
fn a_root_that_waited_for_long_begins_with_an_intermediate_in_the_first_half_of_its_life() {
    let mut slots = published();
    let half = YEAR / 2;
    let switch = |intermediate| {
        Ok(Step::ActivateRoot {
            root: 2,
            intermediate,
        })
    };
    assert_eq!(next(&slots, &facts(half - HOUR, None)), switch(2));
    let make = Step::MakeIntermediate { root: 2 };
    assert_eq!(next(&slots, &facts(half, None)), Ok(make));
    slots.intermediates.push(Intermediate {
        authority: authority(3, State::Published, noon() + half),
        root: 2,
        own: false,
    });
    assert_eq!(next(&slots, &facts(half, None)), switch(3));
}
