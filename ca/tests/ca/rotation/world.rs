//! A mesh in which rotations can be watched quickly: replicas that look at one
//! store, workloads with a bundle and a leaf each, and reports, all of them late
//! by what the real ones may be late by. Certificates are what their dates and
//! signers say; keys play no part.
//!
//! - [`event`]: what may happen.
//! - [`authorities`]: what the CA has.
//! - [`upstream`]: who signs above it, where somebody does.
//! - [`workloads`]: who lives by it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_ca::issuer::status::{AuthorityState, Phase};
use bulkhead_ca::rotation::holders::{HolderReport, Missing};
use bulkhead_ca::rotation::orders::Order;
use bulkhead_ca::rotation::slots::Slots;
use bulkhead_ca::rotation::{self, Facts, Step, Waiting};

use self::authorities::{LIFETIMES, apply, shifted, trusted};
pub(crate) use self::event::{Above, Event};
use self::upstream::Upstream;
use self::workloads::{Workload, adopt, issue, renew};
use crate::support::DAY;

mod authorities;
mod event;
mod upstream;
mod workloads;

const TICK: Duration = Duration::from_secs(5);

/// How late a replica may be with what is stored, and a report with what is so.
const LATE: Duration = Duration::from_secs(10);

/// How old a report may be that is believed at all.
const FRESH: Duration = Duration::from_secs(90);

/// By how much workloads' clocks may be wrong.
const SKEW: u64 = 30;

fn began() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
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

/// What workloads held, compared with a bundle and a root.
#[derive(Clone, Debug)]
struct Said {
    bundle: BTreeSet<u64>,
    root: u64,
    at: SystemTime,
    report: HolderReport,
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
    /// All that the file has said, each since when.
    files: Vec<(SystemTime, Slots)>,
    is_reported: bool,
    delay: Duration,
    /// What was reported last.
    said: Option<Said>,
    /// What was so a while ago, which is what the reports tell.
    past: Vec<(SystemTime, Vec<Workload>)>,
    waiting: Option<Waiting>,
    upstream: Option<Upstream>,
}

impl World {
    pub(crate) fn new(replicas: u32, workloads: u32) -> Self {
        Self::begin(replicas, workloads, None)
    }

    /// One whose root is elsewhere.
    pub(crate) fn below_an_upstream(replicas: u32, workloads: u32) -> Self {
        Self::begin(replicas, workloads, Some(Upstream::new(began())))
    }

    fn begin(replicas: u32, workloads: u32, upstream: Option<Upstream>) -> Self {
        let now = began();
        let mut store = Slots::default();
        match &upstream {
            None => apply(&mut store, &Step::Begin, now, None),
            Some(upstream) => {
                upstream.sign(&mut store, now, None);
                store.allow_leaf_life(LIFETIMES.max);
                store.sequence = 1;
            }
        }
        // They look in turn, and not at the same instant.
        let replicas = (0..replicas).map(|index| Replica {
            view: store.clone(),
            off: 0,
            looked: now - TICK * (index % 2),
            since: now,
        });
        let replicas = replicas.collect();
        let mut world = Self {
            now,
            files: vec![(now, store.clone())],
            file: store.clone(),
            store,
            order: Some(Order::default()),
            is_readable: true,
            leader: 0,
            replicas,
            workloads: Vec::new(),
            joined: 0,
            is_reported: true,
            delay: LATE,
            said: None,
            past: Vec::new(),
            waiting: None,
            upstream,
        };
        for index in 0..workloads {
            let off = [0, -30, 30][index as usize % 3];
            world.join(0, Duration::ZERO, off);
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
            Event::Join(by) => {
                let lag = Duration::from_secs(u64::from(by) / 3);
                let off = i64::from(by) % 61 - 30;
                self.join(replica(by), lag, off);
            }
            Event::Leave(who) if self.workloads.len() > 1 => {
                self.workloads
                    .remove(usize::from(who) % self.workloads.len());
            }
            Event::Leave(_) => {}
            Event::Lead(who) => {
                self.leader = replica(who);
                self.replicas[self.leader].since = self.now;
                self.forget_upstream();
            }
            Event::Restart(who) => {
                let replica = &mut self.replicas[usize::from(who) % replicas];
                replica.view = self.store.clone();
                replica.since = self.now;
                if usize::from(who) % replicas == self.leader {
                    self.forget_upstream();
                }
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
            Event::Delay(delay) => self.delay = delay.min(LATE),
            Event::Orders(are_readable) => self.is_readable = are_readable,
            Event::Upstream(above) => self.above(&above),
        }
        self.check();
    }

    fn above(&mut self, does: &Above) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        match *does {
            Above::Another => upstream.turn_to_another(self.now),
            Above::Back => upstream.turn_back(),
            Above::Rumour => upstream.tell(),
            Above::Both(both) => upstream.list_both(both),
            Above::Away(is_away) => upstream.go_away(is_away),
            Above::Delay(delay) => upstream.take_its_time(delay),
        }
    }

    fn forget_upstream(&mut self) {
        if let Some(upstream) = &mut self.upstream {
            upstream.forget(&self.store, self.now);
        }
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
        for does in [
            Above::Away(false),
            Above::Delay(Duration::ZERO),
            Above::Both(false),
            Above::Rumour,
        ] {
            self.above(&does);
        }
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
        self.publish();
        self.workloads_act();
        let present = (self.now, self.workloads.clone());
        self.past.push(present);
        let last = self.now - LATE;
        let over = self.past.iter().filter(|(at, _)| *at <= last).count();
        self.past.drain(..over.saturating_sub(1));
    }

    /// Every replica writes what it knows where it finds something else: for as
    /// long as one of them has not looked, the file goes back and forth.
    fn publish(&mut self) {
        let mut views = self.replicas.iter().map(|replica| &replica.view);
        let other = views.rfind(|view| **view != self.file);
        if let Some(view) = other.cloned() {
            self.files.push((self.now, view.clone()));
            self.file = view;
        }
    }

    /// The leader takes the steps that are due, if it has seen what is stored.
    fn lead(&mut self) {
        if self.replicas[self.leader].view == self.store {
            self.take_answer();
            while self.take_a_step() {}
        }
    }

    /// Stores what the upstream signed.
    fn take_answer(&mut self) {
        let now = shifted(self.now, self.replicas[self.leader].off);
        let order = self.order.filter(|_| self.is_readable);
        if let Some(upstream) = &mut self.upstream
            && upstream.has_answered(self.now)
        {
            upstream.sign(&mut self.store, now, order);
            self.was_written();
        }
    }

    fn was_written(&mut self) {
        let replica = &mut self.replicas[self.leader];
        replica.view = self.store.clone();
        replica.since = self.now;
    }

    fn take_a_step(&mut self) -> bool {
        let leader = &self.replicas[self.leader];
        let now = shifted(self.now, leader.off);
        let mut facts = Facts {
            now,
            settled_for: self.since(leader),
            settle: rotation::SETTLE,
            wanted: self.order.filter(|_| self.is_readable),
            holders: HolderReport::default(),
            lifetimes: LIFETIMES,
            upstream: self.upstream.as_ref().map(|above| above.facts(self.now)),
        };
        if let Some(root) = rotation::question(&self.store, &facts) {
            let off = leader.off;
            facts.holders = self.report(root, off);
        }
        match rotation::next(&self.store, &facts) {
            Step::Wait(waiting) => {
                self.waiting = Some(waiting);
                false
            }
            Step::AskUpstream => {
                let upstream = self.upstream.as_mut().expect("there is one to be asked");
                upstream.ask(self.now);
                true
            }
            step => {
                self.cut_off(&step);
                apply(&mut self.store, &step, now, self.order);
                self.was_written();
                true
            }
        }
    }

    /// Whoever does not hold a root that signs by force is cut off until it does, as
    /// people were told.
    fn cut_off(&mut self, step: &Step) {
        let Step::ActivateRoot { root, .. } = *step else {
            return;
        };
        if self.order.and_then(|order| order.force_generation) != Some(root) {
            return;
        }
        for workload in &mut self.workloads {
            workload.given_up |= !workload.bundle.contains(&root);
        }
    }

    /// What was reported last, if that is an answer: its age by the leader's clock
    /// is what it is.
    fn report(&mut self, root: u64, off: i64) -> HolderReport {
        let bundle = trusted(&self.store);
        if self.is_reported {
            self.said = self.compare(bundle.clone(), root);
        }
        let age = |said: &Said| self.now.duration_since(said.at).unwrap();
        let is_answer = |said: &&Said| said.bundle == bundle && age(said) <= FRESH;
        let Some(said) = self.said.as_ref().filter(is_answer) else {
            return HolderReport::default();
        };
        HolderReport {
            at: Some(shifted(said.at, off)),
            renewed: if said.root == root {
                said.report.renewed
            } else {
                0
            },
            ..said.report.clone()
        }
    }

    /// What was so when the report that is there now was made.
    fn compare(&self, bundle: BTreeSet<u64>, root: u64) -> Option<Said> {
        let at = self.now - self.delay;
        let (_, workloads) = self.past.iter().rev().find(|(then, _)| *then <= at)?;
        let holds = |workload: &&Workload| workload.bundle == bundle;
        let report = HolderReport {
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
            at: Some(at),
            silent: None,
        };
        Some(Said {
            bundle,
            root,
            at,
            report,
        })
    }

    fn workloads_act(&mut self) {
        for index in 0..self.workloads.len() {
            let mut workload = self.workloads[index].clone();
            let now = shifted(self.now, workload.off);
            if !workload.is_deaf {
                let lag = workload.lag;
                adopt(&mut workload, self.file_before(lag), now);
            }
            let is_early = workload.first != workload.leaf.root && !workload.is_deaf;
            if now >= workload.renew_at || is_early {
                // Any replica may answer.
                let replica = &self.replicas[index % self.replicas.len()];
                let answer = replica.view.clone();
                if let Some(leaf) = issue(&answer, shifted(self.now, replica.off)) {
                    adopt(&mut workload, &answer, now);
                    renew(&mut workload, leaf, now);
                }
            }
            workload.given_up &= !trusted(&self.store).is_subset(&workload.bundle);
            self.workloads[index] = workload;
        }
    }

    /// What the file said that long ago.
    fn file_before(&self, lag: Duration) -> &Slots {
        let then = self.now - lag;
        let mut said = self.files.iter().rev();
        let last = said.find(|(since, _)| *since <= then);
        let (_, file) = last.unwrap_or(&self.files[0]);
        file
    }

    /// A new workload asks a replica for its first certificate, and has the file
    /// as it was a while ago.
    fn join(&mut self, replica: usize, lag: Duration, off: i64) {
        let replica = &self.replicas[replica];
        let Some(leaf) = issue(&replica.view, shifted(self.now, replica.off)) else {
            return;
        };
        let now = shifted(self.now, off);
        if !leaf.dates.hold_at(now) {
            return;
        }
        let mut workload = Workload {
            name: format!("workload-{}", self.joined),
            bundle: trusted(&replica.view),
            first: leaf.root,
            sequence: replica.view.sequence,
            off,
            lag,
            is_deaf: false,
            renew_at: now + DAY / 2,
            given_up: false,
            leaf,
        };
        adopt(&mut workload, self.file_before(lag), now);
        self.joined += 1;
        self.workloads.push(workload);
    }

    /// The promise of it all, whatever clock in the mesh one looks at.
    fn check(&self) {
        let skew = Duration::from_secs(SKEW);
        let lives = |workload: &&Workload| {
            let dates = workload.leaf.dates;
            !workload.given_up && dates.hold_at(self.now) && dates.hold_at(self.now + skew)
        };
        let living: Vec<&Workload> = self.workloads.iter().filter(lives).collect();
        for one in &living {
            for other in &living {
                assert!(
                    one.bundle.contains(&other.leaf.root)
                        && other.leaf.dates.hold_at(shifted(self.now, one.off)),
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

    /// Whether the root that signs is the one that the upstream signs under.
    pub(crate) fn follows_upstream(&self) -> bool {
        let active = self.store.active_root().unwrap();
        let upstream = self.upstream.as_ref().unwrap();
        active.authority.fingerprint == upstream.signing_root()
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
