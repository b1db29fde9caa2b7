//! The CA's authorities, as far as they are dates and what signed what.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bulkhead_ca::config::Lifetimes;
use bulkhead_ca::issuer::status::AuthorityState;
use bulkhead_ca::rotation::Step;
use bulkhead_ca::rotation::orders::Order;
use bulkhead_ca::rotation::slots::{Authority, Automatic, Intermediate, Root, Slots, TokenKey};
use bulkhead_pki::jwk::Jwk;

use crate::support::DAY;

const BACKDATE: Duration = Duration::from_secs(120);

pub(super) const LIFETIMES: Lifetimes = Lifetimes {
    default: DAY,
    max: DAY,
    root: Duration::from_secs(40 * 24 * 3600),
    intermediate: Duration::from_secs(10 * 24 * 3600),
};

/// From when to when something is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dates {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Dates {
    pub(super) fn hold_at(self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }

    pub(super) fn within(self, outer: Self) -> Self {
        Self {
            from: self.from.max(outer.from),
            until: self.until.min(outer.until),
        }
    }
}

pub(super) fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

pub(super) fn trusted(slots: &Slots) -> BTreeSet<u64> {
    slots
        .trusted_roots()
        .map(|root| root.authority.generation)
        .collect()
}

pub(super) fn lifetime(now: SystemTime, lifetime: Duration) -> Dates {
    Dates {
        from: now - BACKDATE,
        until: now + lifetime,
    }
}

pub(super) fn dates(authority: &Authority) -> Dates {
    Dates {
        from: authority.not_before,
        until: authority.not_after,
    }
}

pub(super) fn authority(
    generation: u64,
    state: AuthorityState,
    now: SystemTime,
    dates: Dates,
) -> Authority {
    Authority {
        generation,
        state,
        fingerprint: format!("{generation} of {now:?}"),
        serial: String::new(),
        key_type: String::new(),
        made: now,
        not_before: dates.from,
        not_after: dates.until,
        stopped: None,
    }
}

fn make_root(slots: &mut Slots, state: AuthorityState, now: SystemTime) {
    let dates = lifetime(now, LIFETIMES.root);
    slots.roots.push(Root {
        authority: authority(slots.next_root(), state, now, dates),
        has_key: true,
        listed: false,
        leaf_life: None,
    });
}

pub(super) fn make_intermediate(
    slots: &mut Slots,
    root: u64,
    state: AuthorityState,
    now: SystemTime,
) {
    let above = dates(&slots.root(root).unwrap().authority);
    let dates = lifetime(now, LIFETIMES.intermediate).within(above);
    slots.intermediates.push(Intermediate {
        authority: authority(slots.next_intermediate(), state, now, dates),
        root,
        own: false,
    });
}

pub(super) fn make_token_key(slots: &mut Slots, now: SystemTime) {
    let state = match slots.active_token_key() {
        None => AuthorityState::Active,
        Some(_) => AuthorityState::Published,
    };
    let dates = lifetime(now, LIFETIMES.intermediate);
    slots.token_keys.push(TokenKey {
        authority: authority(slots.next_token_key(), state, now, dates),
        public: Jwk::default(),
    });
}

/// What the CA does, with certificates that are their dates.
pub(super) fn apply(slots: &mut Slots, step: &Step, now: SystemTime, order: Option<Order>) {
    match *step {
        Step::Begin => {
            make_root(slots, AuthorityState::Active, now);
            make_intermediate(slots, 1, AuthorityState::Active, now);
            make_token_key(slots, now);
            slots.allow_leaf_life(LIFETIMES.max);
            slots.sequence = 1;
        }
        Step::MakeRoot {
            generation,
            automatic,
        } => {
            make_root(slots, AuthorityState::Prepared, now);
            slots.automatic = automatic.then(|| Automatic {
                generation,
                ordered: order.and_then(|order| order.root_generation),
            });
        }
        Step::PublishRoot { generation } => slots.publish_root(generation, now),
        Step::ActivateRoot { root, intermediate } => {
            slots.activate_root(root, intermediate, now);
            slots.allow_leaf_life(LIFETIMES.max);
        }
        Step::AllowLeafLife { life } => slots.allow_leaf_life(life),
        Step::RetireRoot { generation } => slots.retire_root(generation, now),
        Step::MakeIntermediate { root } => {
            make_intermediate(slots, root, AuthorityState::Published, now);
        }
        Step::ActivateIntermediate { generation } => slots.activate_intermediate(generation, now),
        Step::RetireIntermediate { generation } => slots.retire_intermediate(generation),
        Step::MakeTokenKey => make_token_key(slots, now),
        Step::ActivateTokenKey { generation } => slots.activate_token_key(generation, now),
        Step::RetireTokenKey { generation } => slots.retire_token_key(generation, now),
        Step::AskUpstream | Step::Wait(_) => {}
    }
}
