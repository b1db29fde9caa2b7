use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    in_service: 1,
    waiting: 64,
    waiting_of_one: 32,
};

fn enter<K: Clone + Ord + std::fmt::Debug>(
    schedule: &mut Schedule<K>,
    caller: K,
    urgency: Urgency,
) -> Ticket<K> {
    match schedule.enter(caller, urgency) {
        Entered::Waits {
            ticket,
            displaced: None,
        } => ticket,
        other => panic!("{other:?}"),
    }
}

/// Serves whoever is there, one at a time, and says in which order.
fn serve_all<K: Clone + Ord>(schedule: &mut Schedule<K>) -> Vec<K> {
    let mut served = Vec::new();
    while let Some(ticket) = schedule.take() {
        schedule.finish(&ticket.caller);
        served.push(ticket.caller);
    }
    served
}

#[test]
fn callers_without_a_certificate_go_first_then_those_whose_certificate_expires_soon() {
    let mut schedule = Schedule::new(LIMITS);
    enter(&mut schedule, "renews", Urgency::Renewal);
    enter(&mut schedule, "expires", Urgency::ExpiresSoon);
    enter(&mut schedule, "starts", Urgency::NoCertificate);
    enter(&mut schedule, "starts too", Urgency::NoCertificate);
    assert_eq!(
        serve_all(&mut schedule),
        ["starts", "starts too", "expires", "renews"]
    );
}

#[test]
fn a_caller_who_always_claims_to_have_no_certificate_gains_one_place_once() {
    let mut schedule = Schedule::new(LIMITS);
    for _ in 0..10 {
        enter(&mut schedule, "greedy", Urgency::NoCertificate);
    }
    for name in ["a", "b", "c"] {
        enter(&mut schedule, name, Urgency::Renewal);
    }
    let served = serve_all(&mut schedule);
    assert_eq!(served[..4], ["greedy", "a", "b", "c"]);
}

#[test]
fn many_behind_one_address_have_their_turn_and_the_urgent_of_them_first() {
    let mut schedule = Schedule::new(LIMITS);
    let first = enter(&mut schedule, "node", Urgency::Renewal);
    let second = enter(&mut schedule, "node", Urgency::NoCertificate);
    enter(&mut schedule, "other", Urgency::Renewal);
    assert_eq!(schedule.take().unwrap(), second);
    schedule.finish(&"node");
    assert_eq!(schedule.take().unwrap().caller, "other");
    schedule.finish(&"other");
    assert_eq!(schedule.take().unwrap(), first);
}

#[test]
fn a_stream_of_urgent_newcomers_does_not_starve_who_has_waited() {
    let mut schedule = Schedule::new(LIMITS);
    enter(&mut schedule, 0, Urgency::Renewal);
    let turns = (1..).find(|number| {
        enter(&mut schedule, *number, Urgency::NoCertificate);
        let served = schedule.take().unwrap();
        schedule.finish(&served.caller);
        served.caller == 0
    });
    assert!(turns.unwrap() <= TURNS_IN_ROUND + 1, "{turns:?}");
}

#[test]
fn however_much_one_asks_for_there_is_a_place_for_the_next() {
    let limits = Limits {
        in_service: 8,
        ..LIMITS
    };
    let mut schedule = Schedule::new(limits);
    for _ in 0..20 {
        enter(&mut schedule, "greedy", Urgency::NoCertificate);
    }
    let taken = std::iter::from_fn(|| schedule.take()).count();
    assert_eq!(taken, 4, "half of the places");
    enter(&mut schedule, "other", Urgency::Renewal);
    assert_eq!(schedule.take().unwrap().caller, "other");
}

#[test]
fn when_all_places_to_wait_are_taken_the_longest_line_gives_way() {
    let limits = Limits {
        waiting: 4,
        ..LIMITS
    };
    let mut schedule = Schedule::new(limits);
    let mut last = None;
    for _ in 0..4 {
        last = Some(enter(&mut schedule, "greedy", Urgency::NoCertificate));
    }
    let Entered::Waits { displaced, .. } = schedule.enter("other", Urgency::Renewal) else {
        panic!("the other was turned away");
    };
    assert_eq!(displaced, last);
    assert_eq!(
        schedule.enter("greedy", Urgency::NoCertificate),
        Entered::Full
    );
    assert_eq!(schedule.waiting(), 4);
}

#[test]
fn when_everybody_waits_once_a_caller_without_a_certificate_takes_a_renewals_place() {
    let limits = Limits {
        waiting: 2,
        ..LIMITS
    };
    let mut schedule = Schedule::new(limits);
    enter(&mut schedule, "starts", Urgency::NoCertificate);
    let renews = enter(&mut schedule, "renews", Urgency::Renewal);
    let Entered::Waits { displaced, .. } = schedule.enter("new", Urgency::NoCertificate) else {
        panic!("turned away");
    };
    assert_eq!(displaced, Some(renews));
    assert_eq!(
        schedule.enter("late", Urgency::NoCertificate),
        Entered::Full
    );
}

#[derive(Clone, Debug)]
enum Event {
    Enter(u8, Urgency),
    Next,
    /// Those in service, and those who wait, by their place.
    Finish(usize),
    Leave(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let urgency = prop_oneof![
        Just(Urgency::NoCertificate),
        Just(Urgency::ExpiresSoon),
        Just(Urgency::Renewal)
    ];
    prop_oneof![
        4 => (0..6_u8, urgency).prop_map(|(caller, urgency)| Event::Enter(caller, urgency)),
        3 => Just(Event::Next),
        3 => any::<usize>().prop_map(Event::Finish),
        1 => any::<usize>().prop_map(Event::Leave),
    ]
}

/// What a schedule must be, kept in the plainest way.
struct Model {
    limits: Limits,
    schedule: Schedule<u8>,
    waiting: Vec<Ticket<u8>>,
    served: Vec<Ticket<u8>>,
    /// For each who waits: how many turns each caller has had since it came, or
    /// since its caller's last turn.
    overtaken: BTreeMap<u8, BTreeMap<u8, usize>>,
}

impl Model {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Enter(caller, urgency) => self.enter(caller, urgency),
            Event::Next => self.next(),
            Event::Finish(which) if !self.served.is_empty() => {
                let ticket = self.served.remove(which % self.served.len());
                self.schedule.finish(&ticket.caller);
            }
            Event::Leave(which) if !self.waiting.is_empty() => {
                let ticket = self.waiting.remove(which % self.waiting.len());
                assert!(self.schedule.leave(&ticket));
                assert!(!self.schedule.leave(&ticket), "nobody leaves twice");
            }
            Event::Finish(_) | Event::Leave(_) => {}
        }
        let waits = |caller: &u8| self.waiting.iter().any(|ticket| ticket.caller == *caller);
        self.overtaken.retain(|caller, _| waits(caller));
        assert_eq!(self.schedule.waiting(), self.waiting.len());
        assert_eq!(self.schedule.in_service(), self.served.len());
        assert!(self.waiting.len() <= self.limits.waiting);
        assert!(self.served.len() <= self.limits.in_service);
    }

    fn enter(&mut self, caller: u8, urgency: Urgency) {
        let of_one = self.waiting.iter().filter(|ticket| ticket.caller == caller);
        let of_one = of_one.count();
        match self.schedule.enter(caller, urgency) {
            Entered::Waits { ticket, displaced } => {
                if let Some(displaced) = displaced {
                    assert_eq!(self.waiting.len(), self.limits.waiting);
                    self.waiting.retain(|ticket| *ticket != displaced);
                }
                assert!(of_one < self.limits.waiting_of_one);
                self.waiting.push(ticket);
                self.overtaken.entry(caller).or_default();
            }
            Entered::Full => assert!(
                of_one == self.limits.waiting_of_one || self.waiting.len() == self.limits.waiting
            ),
        }
    }

    fn next(&mut self) {
        let free = self.limits.in_service - self.served.len();
        let held = |caller| {
            self.served
                .iter()
                .filter(|ticket| ticket.caller == caller)
                .count()
        };
        let may = |ticket: &Ticket<u8>| free > 0 && held(ticket.caller) < free.max(1);
        let Some(turn) = self.schedule.take() else {
            assert!(!self.waiting.iter().any(may), "a place stays empty");
            return;
        };
        assert!(may(&turn));
        // Of one caller the urgent go first, and of those whoever came first.
        let of_caller = self
            .waiting
            .iter()
            .filter(|other| other.caller == turn.caller);
        let first = of_caller.min_by_key(|other| (other.urgency, other.number));
        assert_eq!(first, Some(&turn));
        for (caller, turns) in &mut self.overtaken {
            // Who had no turn because it holds its share already waits for itself.
            let holds = self.served.iter().any(|ticket| ticket.caller == *caller);
            if *caller == turn.caller || holds {
                turns.clear();
            } else {
                let count = turns.entry(turn.caller).or_default();
                *count += 1;
                assert!(
                    *count <= 2,
                    "{} goes before {caller} again and again",
                    turn.caller
                );
            }
        }
        self.waiting.retain(|ticket| *ticket != turn);
        self.served.push(turn);
    }
}

proptest! {
    /// Whatever comes and goes: bounds hold, no place stays empty while somebody
    /// may have it, and nobody has three turns while another waits for one.
    #[test]
    fn turns_are_fair_whatever_callers_claim(
        in_service in 1..6_usize,
        waiting in 1..20_usize,
        waiting_of_one in 1..20_usize,
        events in prop::collection::vec(event(), 1..400),
    ) {
        let limits = Limits { in_service, waiting, waiting_of_one };
        let mut model = Model {
            limits,
            schedule: Schedule::new(limits),
            waiting: Vec::new(),
            served: Vec::new(),
            overtaken: BTreeMap::new(),
        };
        for event in events {
            model.apply(event);
        }
        // And in the end nothing is left behind.
        for ticket in std::mem::take(&mut model.waiting) {
            assert!(model.schedule.leave(&ticket));
        }
        for ticket in std::mem::take(&mut model.served) {
            model.schedule.finish(&ticket.caller);
        }
        prop_assert!(model.schedule.callers.is_empty());
        prop_assert!(model.schedule.heads.is_empty() && model.schedule.lengths.is_empty());
    }
}
