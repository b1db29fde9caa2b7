//! A mesh in which rotations can be watched quickly: replicas that look at one
//! store, workloads with a bundle and a leaf each, and reports, all of them late
//! by what the real ones may be late by. Certificates are what their dates and
//! signers say; keys play no part.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_ca::config::Lifetimes;
use bulkhead_ca::issuer::status::{AuthorityState, Phase};
use bulkhead_ca::rotation::holders::{HolderReport, Missing};
use bulkhead_ca::rotation::orders::Order;
use bulkhead_ca::rotation::slots::{Authority, Automatic, Intermediate, Root, Slots, TokenKey};
use bulkhead_ca::rotation::{self, Facts, Step, Waiting};
use bulkhead_pki::jwk::Jwk;

use crate::support::DAY;

const TICK: Duration = Duration::from_secs(5);
const BACKDATE: Duration = Duration::from_secs(120);

/// How late a replica may be with what is stored, and a report with what is so.
const LATE: Duration = Duration::from_secs(10);

const LIFETIMES: Lifetimes = Lifetimes {
    default: DAY,
    max: DAY,
    root: Duration::from_secs(40 * 24 * 3600),
    intermediate: Duration::from_secs(10 * 24 * 3600),
};

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Pass(Duration),
    /// Orders the next root.
    Rotate,
    /// Orders the root that signs now.
    Undo,
    Order(u64),
    Force(u64),
    /// Takes the order away.
    Withdraw,
    Join(u8),
    Leave(u8),
    /// Another replica leads.
    Lead(u8),
    Restart(u8),
    /// A replica's clock leaps, by seconds.
    Leap(u8, i64),
    RightClock(u8),
    /// A workload's file does not reach it any more.
    Deaf(u8),
    Hear(u8),
    /// Whether anybody reports what workloads hold.
    Reports(bool),
    /// Whether the order can be read.
    Orders(bool),
}

/// From when to when something is valid.
#[derive(Clone, Copy, Debug)]
struct Dates {
    from: SystemTime,
    until: SystemTime,
}

impl Dates {
    fn hold_at(self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }

    fn within(self, outer: Self) -> Self {
        Self {
            from: self.from.max(outer.from),
            until: self.until.min(outer.until),
        }
    }
}

#[derive(Clone, Debug)]
struct Leaf {
    root: u64,
    /// Those of the whole chain.
    dates: Dates,
    made: SystemTime,
}

#[derive(Clone, Debug)]
struct Workload {
    name: String,
    leaf: Leaf,
    bundle: BTreeSet<u64>,
    first: u64,
    sequence: u64,
    is_deaf: bool,
    renew_at: SystemTime,
    given_up: bool,
}

#[derive(Clone, Debug)]
struct Replica {
    view: Slots,
    /// Seconds that its clock is off.
    off: i64,
    looked: SystemTime,
    /// Since when it has seen the slots as they are while it led.
    since: SystemTime,
}

#[derive(Debug)]
pub(crate) struct World {
    now: SystemTime,
    store: Slots,
    order: Option<Order>,
    is_readable: bool,
    leader: usize,
    replicas: Vec<Replica>,
    workloads: Vec<Workload>,
    joined: usize,
    file: Slots,
    is_reported: bool,
    /// What was so a while ago, which is what the reports tell.
    past: Vec<(SystemTime, Vec<Workload>)>,
    waiting: Option<Waiting>,
}

impl World {
    pub(crate) fn new(replicas: usize, workloads: usize) -> Self {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut store = Slots::default();
        apply(&mut store, &Step::Begin, now, None);
        let replica = Replica {
            view: store.clone(),
            off: 0,
            looked: now,
            since: now,
        };
        let mut world = Self {
            now,
            file: store.clone(),
            store,
            order: Some(Order::default()),
            is_readable: true,
            leader: 0,
            replicas: vec![replica; replicas],
            workloads: Vec::new(),
            joined: 0,
            is_reported: true,
            past: Vec::new(),
            waiting: None,
        };
        for _ in 0..workloads {
            world.join(0);
        }
        world.pass(TICK);
        world
    }

    pub(crate) fn happen(&mut self, event: Event) {
        let replicas = self.replicas.len();
        let replica = |number: u8| usize::from(number) % replicas;
        let forced = self.order.and_then(|order| order.force_generation);
        let ordered = self.order.and_then(|order| order.root_generation);
        let order = |root_generation| {
            Some(Order {
                root_generation,
                force_generation: forced,
            })
        };
        match event {
            Event::Pass(time) => self.pass(time),
            Event::Rotate => self.order = order(Some(self.store.next_root())),
            Event::Undo => self.order = order(Some(self.active_root())),
            Event::Order(generation) => self.order = order(Some(generation)),
            Event::Withdraw => self.order = order(None),
            Event::Force(generation) => {
                self.order = Some(Order {
                    root_generation: ordered,
                    force_generation: Some(generation),
                });
            }
            Event::Join(by) => self.join(replica(by)),
            Event::Leave(who) if self.workloads.len() > 1 => {
                self.workloads
                    .remove(usize::from(who) % self.workloads.len());
            }
            Event::Leave(_) => {}
            Event::Lead(who) => {
                self.leader = replica(who);
                self.replicas[self.leader].since = self.now;
            }
            Event::Restart(who) => {
                let replica = &mut self.replicas[usize::from(who) % replicas];
                replica.view = self.store.clone();
                replica.since = self.now;
            }
            Event::Leap(who, by) => {
                let replica = &mut self.replicas[usize::from(who) % replicas];
                replica.off += by;
                replica.since = self.now;
            }
            Event::RightClock(who) => {
                let replica = &mut self.replicas[usize::from(who) % replicas];
                replica.off = 0;
                replica.since = self.now;
            }
            Event::Deaf(who) => self.workload(who).is_deaf = true,
            Event::Hear(who) => self.workload(who).is_deaf = false,
            Event::Reports(are_there) => self.is_reported = are_there,
            Event::Orders(are_readable) => self.is_readable = are_readable,
        }
        self.check();
    }

    /// Everything that was wrong is right again.
    pub(crate) fn calm(&mut self) {
        for replica in &mut self.replicas {
            replica.off = 0;
            replica.since = self.now;
        }
        for workload in &mut self.workloads {
            workload.is_deaf = false;
        }
        self.is_reported = true;
        // What was begun comes to its end first.
        self.is_readable = true;
        self.order = Some(Order::default());
        self.pass(3 * DAY);
    }

    pub(crate) fn order_a_rotation(&mut self) -> u64 {
        let generation = self.store.next_root();
        self.happen(Event::Order(generation));
        generation
    }

    pub(crate) fn give_up_on_the_deaf(&mut self) {
        for workload in &mut self.workloads {
            workload.given_up = workload.is_deaf;
        }
    }

    /// Lets time pass. Where nothing is under way, in long strides.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let before = self.store.clone();
            let stride = if self.is_quiet() { 360 * TICK } else { TICK };
            self.now = (self.now + stride).min(until);
            self.tick();
            self.check();
            let has_changed = self.store != before;
            if has_changed && stride > TICK {
                // What came of it is watched closely again.
                self.past.clear();
            }
        }
    }

    pub(crate) fn pass_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if is_so(self) {
                return;
            }
            self.pass(TICK);
        }
        panic!("what was waited for never was so: {self:#?}");
    }

    fn is_quiet(&self) -> bool {
        let leader = &self.replicas[self.leader];
        let has_settled = self.since(leader) > Duration::from_secs(900);
        has_settled
            && self
                .replicas
                .iter()
                .all(|replica| replica.view == self.store)
            && self.file == self.store
    }

    fn since(&self, replica: &Replica) -> Duration {
        self.now.duration_since(replica.since).unwrap_or_default()
    }

    fn tick(&mut self) {
        for index in 0..self.replicas.len() {
            let replica = &mut self.replicas[index];
            if self.now >= replica.looked + LATE {
                replica.looked = self.now;
                if replica.view != self.store {
                    replica.view = self.store.clone();
                    replica.since = self.now;
                }
            }
        }
        self.lead();
        self.workloads_act();
        if self.replicas[self.leader].looked == self.now {
            self.file = self.store.clone();
        }
        let present = (self.now, self.workloads.clone());
        self.past.push(present);
        let first = self.now - LATE;
        self.past.retain(|(at, _)| *at >= first);
    }

    /// The leader takes one step, if it has seen what is stored.
    fn lead(&mut self) {
        let leader = &self.replicas[self.leader];
        if leader.view != self.store {
            return;
        }
        let now = shifted(self.now, leader.off);
        let mut facts = Facts {
            now,
            settled_for: self.since(leader),
            settle: rotation::SETTLE,
            wanted: self.order.filter(|_| self.is_readable),
            holders: HolderReport::default(),
            lifetimes: LIFETIMES,
            upstream: None,
        };
        if let Some(root) = rotation::question(&self.store, &facts)
            && self.is_reported
        {
            facts.holders = self.report(root);
        }
        match rotation::next(&self.store, &facts) {
            Step::Wait(waiting) => self.waiting = Some(waiting),
            step => {
                apply(&mut self.store, &step, now, self.order);
                let replica = &mut self.replicas[self.leader];
                replica.view = self.store.clone();
                replica.since = self.now;
            }
        }
    }

    /// What was so as long ago as a report may be late.
    fn report(&self, root: u64) -> HolderReport {
        let Some((at, workloads)) = self.past.first() else {
            return HolderReport::default();
        };
        let bundle: BTreeSet<u64> = trusted(&self.store);
        let holds = |workload: &&Workload| workload.bundle == bundle;
        HolderReport {
            total: workloads.len(),
            holding: workloads.iter().filter(holds).count(),
            renewed: workloads.iter().filter(|w| w.leaf.root == root).count(),
            missing: workloads
                .iter()
                .filter(|workload| !holds(workload))
                .map(|workload| Missing {
                    who: workload.name.clone(),
                    reason: "lacks the bundle".to_owned(),
                })
                .collect(),
            at: Some(*at),
            silent: None,
        }
    }

    fn workloads_act(&mut self) {
        for index in 0..self.workloads.len() {
            let mut workload = self.workloads[index].clone();
            if !workload.is_deaf {
                adopt(&mut workload, &self.file, self.now);
            }
            let is_early = workload.first != workload.leaf.root && !workload.is_deaf;
            if self.now >= workload.renew_at || is_early {
                // Any replica may answer.
                let replica = &self.replicas[index % self.replicas.len()];
                let answer = replica.view.clone();
                if let Some(leaf) = issue(&answer, shifted(self.now, replica.off)) {
                    adopt(&mut workload, &answer, self.now);
                    renew(&mut workload, leaf, self.now);
                }
            }
            self.workloads[index] = workload;
        }
    }

    /// A new workload asks a replica for its first certificate, and has the file
    /// as it is now.
    fn join(&mut self, replica: usize) {
        let replica = &self.replicas[replica];
        let Some(leaf) = issue(&replica.view, shifted(self.now, replica.off)) else {
            return;
        };
        if !leaf.dates.hold_at(self.now) {
            return;
        }
        let mut workload = Workload {
            name: format!("workload-{}", self.joined),
            bundle: trusted(&replica.view),
            first: leaf.root,
            sequence: replica.view.sequence,
            is_deaf: false,
            renew_at: self.now + DAY / 2,
            given_up: false,
            leaf,
        };
        adopt(&mut workload, &self.file, self.now);
        self.joined += 1;
        self.workloads.push(workload);
    }

    /// The promise of it all.
    fn check(&self) {
        let lives =
            |workload: &&Workload| !workload.given_up && workload.leaf.dates.hold_at(self.now);
        let living: Vec<&Workload> = self.workloads.iter().filter(lives).collect();
        for one in &living {
            for other in &living {
                assert!(
                    one.bundle.contains(&other.leaf.root),
                    "{} cannot verify {}: {:#?}",
                    one.name,
                    other.name,
                    self
                );
            }
        }
        for intermediate in &self.store.intermediates {
            let root = self.store.root(intermediate.root);
            assert!(
                root.is_none_or(|root| intermediate.authority.not_after <= root.authority.not_after),
                "an intermediate outlives its root: {self:#?}"
            );
        }
    }

    fn workload(&mut self, number: u8) -> &mut Workload {
        let index = usize::from(number) % self.workloads.len();
        &mut self.workloads[index]
    }

    pub(crate) fn active_root(&self) -> u64 {
        self.store.active_root().unwrap().authority.generation
    }

    pub(crate) fn active_intermediate(&self) -> u64 {
        self.store
            .active_intermediate()
            .unwrap()
            .authority
            .generation
    }

    pub(crate) fn next_root(&self) -> u64 {
        self.store.next_root()
    }

    pub(crate) fn roots_ever_made(&self) -> u64 {
        self.store.next_root() - 1
    }

    pub(crate) fn trusted_roots(&self) -> Vec<u64> {
        self.store
            .trusted_roots()
            .map(|root| root.authority.generation)
            .collect()
    }

    pub(crate) fn state_of_root(&self, generation: u64) -> Option<AuthorityState> {
        self.store.root(generation).map(|root| root.authority.state)
    }

    pub(crate) fn fingerprint(&self, generation: u64) -> String {
        self.store
            .root(generation)
            .unwrap()
            .authority
            .fingerprint
            .clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.waiting.as_ref().unwrap().phase
    }

    pub(crate) fn message(&self) -> &str {
        &self.waiting.as_ref().unwrap().message
    }

    pub(crate) fn missing(&self) -> Vec<&str> {
        let missing = &self.waiting.as_ref().unwrap().missing;
        missing.iter().map(|missing| missing.who.as_str()).collect()
    }
}

fn trusted(slots: &Slots) -> BTreeSet<u64> {
    slots
        .trusted_roots()
        .map(|root| root.authority.generation)
        .collect()
}

/// A workload goes to a later bundle if its own certificate holds under it.
fn adopt(workload: &mut Workload, slots: &Slots, now: SystemTime) {
    let bundle = trusted(slots);
    let root = slots.root(workload.leaf.root);
    let holds = bundle.contains(&workload.leaf.root)
        && root.is_some_and(|root| root.authority.is_valid_at(now));
    if slots.sequence > workload.sequence && (holds || !workload.leaf.dates.hold_at(now)) {
        workload.bundle = bundle;
        workload.sequence = slots.sequence;
        workload.first = slots.active_root().unwrap().authority.generation;
    }
}

/// A workload takes a new certificate if it holds under its bundle.
fn renew(workload: &mut Workload, leaf: Leaf, now: SystemTime) {
    if leaf.dates.hold_at(now) && workload.bundle.contains(&leaf.root) {
        let life = leaf
            .dates
            .until
            .duration_since(leaf.made)
            .unwrap_or_default();
        workload.renew_at = now + life / 2;
        workload.leaf = leaf;
    }
}

fn issue(slots: &Slots, now: SystemTime) -> Option<Leaf> {
    let intermediate = slots.active_intermediate()?;
    let root = slots.root(intermediate.root)?;
    let above = dates(&intermediate.authority).within(dates(&root.authority));
    above.hold_at(now).then(|| Leaf {
        root: intermediate.root,
        dates: lifetime(now, LIFETIMES.max).within(above),
        made: now,
    })
}

fn lifetime(now: SystemTime, lifetime: Duration) -> Dates {
    Dates {
        from: now - BACKDATE,
        until: now + lifetime,
    }
}

fn dates(authority: &Authority) -> Dates {
    Dates {
        from: authority.not_before,
        until: authority.not_after,
    }
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

fn authority(generation: u64, state: AuthorityState, now: SystemTime, dates: Dates) -> Authority {
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
    });
}

fn make_intermediate(slots: &mut Slots, root: u64, state: AuthorityState, now: SystemTime) {
    let above = dates(&slots.root(root).unwrap().authority);
    let dates = lifetime(now, LIFETIMES.intermediate).within(above);
    slots.intermediates.push(Intermediate {
        authority: authority(slots.next_intermediate(), state, now, dates),
        root,
    });
}

fn make_token_key(slots: &mut Slots, now: SystemTime) {
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
fn apply(slots: &mut Slots, step: &Step, now: SystemTime, order: Option<Order>) {
    match *step {
        Step::Begin => {
            make_root(slots, AuthorityState::Active, now);
            make_intermediate(slots, 1, AuthorityState::Active, now);
            make_token_key(slots, now);
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
        Step::ActivateRoot { root, intermediate } => slots.activate_root(root, intermediate, now),
        Step::RetireRoot { generation } => slots.retire_root(generation, now),
        Step::MakeIntermediate { root } => {
            make_intermediate(slots, root, AuthorityState::Published, now);
        }
        Step::ActivateIntermediate { generation } => slots.activate_intermediate(generation, now),
        Step::RetireIntermediate { generation } => slots.retire_intermediate(generation),
        Step::MakeTokenKey => make_token_key(slots, now),
        Step::ActivateTokenKey { generation } => slots.activate_token_key(generation, now),
        Step::RetireTokenKey { generation } => slots.retire_token_key(generation, now),
        Step::Wait(_) => {}
    }
}
