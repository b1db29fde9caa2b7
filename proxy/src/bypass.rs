//! Standing aside: the switch that works when nothing else does.
//!
//! ```text
//!  control ──┐
//!  file ─────┼─▶ Switch: the strongest that has not ended ─▶ State ─▶ connections
//!  admin ────┘
//! ```
//!
//! Nothing here needs a certificate, control, or a connection to anything. See
//! [`BypassPhase`] for what each phase means.

mod file;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_core::bypass::rfc3339;
use bulkhead_core::discovery::{Bypass, BypassPhase};
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_runtime::clock::Clock;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::metrics::ProcessMetrics;
use file::OrderFile;

/// How often the file is looked at, and whether an order has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who can switch. Of two that ask for the same, the later one is named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Control,
    File,
    Admin,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::File => "file",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is in force.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct InForce {
    pub(crate) bypass: Bypass,
    /// Nothing where nobody asks for anything.
    pub(crate) source: Option<Source>,
}

impl InForce {
    /// The policy of an inbound port while the proxy stands aside.
    fn policy(&self) -> InboundPolicy {
        InboundPolicy {
            name: format!("the bypass by {}: {}", self.bypass.by, self.bypass.reason),
            mode: MtlsMode::Permissive,
            port_modes: Default::default(),
        }
    }

    /// As the admin port shows it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "phase": self.bypass.phase.as_str(),
            "reason": self.bypass.reason,
            "by": self.bypass.by,
            "until": self.bypass.until.and_then(rfc3339),
            "source": self.source.map(Source::as_str),
        })
    }
}

/// What each source asks for.
#[derive(Clone, Debug, Default)]
struct Asked {
    control: Bypass,
    file: Bypass,
    admin: Bypass,
}

impl Asked {
    /// The strongest that has not ended.
    fn strongest(&self, now: SystemTime) -> InForce {
        let all = [
            (Source::Control, &self.control),
            (Source::File, &self.file),
            (Source::Admin, &self.admin),
        ];
        all.into_iter()
            .filter(|(_, bypass)| bypass.phase > BypassPhase::Off)
            .filter(|(_, bypass)| bypass.until.is_none_or(|until| until > now))
            .max_by_key(|(_, bypass)| bypass.phase)
            .map(|(source, bypass)| InForce {
                bypass: bypass.clone(),
                source: Some(source),
            })
            .unwrap_or_default()
    }
}

/// What connections see of the switch. Cheap to clone, and to look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct State(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The phase by its place in [`BypassPhase::ALL`], for requests: they look
    /// at nothing else, and may be many.
    phase: AtomicU8,
    /// The phase too, for whoever waits for it to change.
    changes: watch::Sender<BypassPhase>,
    asked: Mutex<(Asked, InForce)>,
}

impl State {
    pub(crate) fn phase(&self) -> BypassPhase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => BypassPhase::Off,
            1 => BypassPhase::Accept,
            _ => BypassPhase::Forward,
        }
    }

    /// Whether clients' bytes pass untouched.
    pub(crate) fn forwards(&self) -> bool {
        self.phase() == BypassPhase::Forward
    }

    pub(crate) fn in_force(&self) -> InForce {
        let asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.1.clone()
    }

    /// The phase, and every change of it.
    pub(crate) fn changes(&self) -> watch::Receiver<BypassPhase> {
        self.0.changes.subscribe()
    }

    /// The policy that stands in for every other; nothing where the proxy does
    /// not stand aside.
    pub(crate) fn policy(&self) -> Option<InboundPolicy> {
        (self.phase() > BypassPhase::Off).then(|| self.in_force().policy())
    }
}

/// Hears the sources, and says what is in force.
#[derive(Clone)]
pub(crate) struct Switch {
    state: State,
    clock: Clock,
    metrics: ProcessMetrics,
}

impl Switch {
    pub(crate) fn new(clock: Clock, metrics: ProcessMetrics) -> Self {
        metrics.bypass(BypassPhase::Off);
        Self {
            state: State::default(),
            clock,
            metrics,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.clone()
    }

    /// Notes what a source asks for now; it is in force when this returns.
    pub(crate) fn ask(&self, source: Source, bypass: Bypass) {
        self.update(|asked| match source {
            Source::Control => asked.control = bypass,
            Source::File => asked.file = bypass,
            Source::Admin => asked.admin = bypass,
        });
    }

    /// Notes what somebody at the admin port asks for, in place of what control
    /// has said so far too. What control says from now on counts again.
    pub(crate) fn take_back(&self, bypass: Bypass) {
        self.update(|asked| {
            asked.admin = bypass;
            asked.control = Bypass::default();
        });
    }

    /// Looks at the file, and for orders that have ended, for ever.
    pub(crate) async fn run(self, path: String, pod: String) {
        let mut file = OrderFile::new(path, pod);
        loop {
            match file.changed().await {
                Some(bypass) => self.ask(Source::File, bypass),
                None => self.update(|_| {}),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn update(&self, change: impl FnOnce(&mut Asked)) {
        let shared = &self.state.0;
        let mut guard = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, in_force) = &mut *guard;
        change(asked);
        let next = asked.strongest(self.clock.now());
        if next == *in_force {
            return;
        }
        let previous = std::mem::replace(in_force, next.clone());
        shared
            .phase
            .store(next.bypass.phase as u8, Ordering::Release);
        shared.changes.send_replace(next.bypass.phase);
        self.metrics.bypass(next.bypass.phase);
        drop(guard);
        self.report(&previous, &next);
    }

    fn report(&self, previous: &InForce, next: &InForce) {
        let until = next.bypass.until.and_then(rfc3339);
        // The end of an order is told with the words of the order.
        let words = if next.source.is_some() {
            next
        } else {
            previous
        };
        tracing::warn!(
            phase = next.bypass.phase.as_str(),
            before = previous.bypass.phase.as_str(),
            by = words.bypass.by,
            reason = words.bypass.reason,
            until = until.as_deref().unwrap_or("further notice"),
            source = words.source.map_or("none", Source::as_str),
            "{}",
            match next.bypass.phase {
                BypassPhase::Off => "the bypass is over: policy and mutual TLS are in force again",
                BypassPhase::Accept => "bypass: plaintext is accepted, and policy is off",
                BypassPhase::Forward => "bypass: bytes are forwarded untouched, and policy is off",
            }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn switch() -> (Switch, Clock) {
        let clock = Clock::stopped_at(UNIX_EPOCH + Duration::from_secs(1_000));
        let switch = Switch::new(clock.clone(), ProcessMetrics::default());
        (switch, clock)
    }

    fn bypass(phase: BypassPhase, by: &str) -> Bypass {
        Bypass {
            phase,
            by: by.to_owned(),
            ..Bypass::default()
        }
    }

    #[test]
    fn the_strongest_order_is_in_force_whoever_gave_it() {
        let (switch, _) = switch();
        let state = switch.state();
        assert_eq!(state.phase(), BypassPhase::Off);
        assert_eq!(state.policy(), None);
        switch.ask(Source::Admin, bypass(BypassPhase::Accept, "ada"));
        assert_eq!(state.phase(), BypassPhase::Accept);
        switch.ask(Source::Control, bypass(BypassPhase::Forward, "grace"));
        assert_eq!(state.in_force().source, Some(Source::Control));
        switch.ask(Source::File, bypass(BypassPhase::Off, "alan"));
        assert!(state.forwards());
        switch.ask(Source::Control, Bypass::default());
        assert_eq!(state.in_force().bypass.by, "ada");
        switch.ask(Source::Admin, Bypass::default());
        assert_eq!(state.in_force(), InForce::default());
    }

    #[test]
    fn what_control_said_before_it_died_can_be_taken_back_at_the_admin_port() {
        let (switch, _) = switch();
        let state = switch.state();
        switch.ask(Source::Control, bypass(BypassPhase::Forward, "ada"));
        switch.take_back(bypass(BypassPhase::Accept, "grace"));
        assert_eq!(state.phase(), BypassPhase::Accept);
        switch.take_back(bypass(BypassPhase::Off, "grace"));
        assert_eq!(state.in_force(), InForce::default());

        switch.ask(Source::Control, bypass(BypassPhase::Forward, "ada"));
        assert!(state.forwards(), "a control that is back is heard again");
    }

    #[test]
    fn an_order_ends_at_its_time_and_a_weaker_one_is_in_force_again() {
        let (switch, clock) = switch();
        let until = clock.now() + Duration::from_secs(30);
        switch.ask(Source::File, bypass(BypassPhase::Accept, "ada"));
        let strong = Bypass {
            until: Some(until),
            ..bypass(BypassPhase::Forward, "grace")
        };
        switch.ask(Source::Admin, strong.clone());
        assert!(switch.state().forwards());
        clock.advance(Duration::from_secs(30));
        switch.update(|_| {});
        assert_eq!(switch.state().phase(), BypassPhase::Accept);
        switch.ask(Source::Admin, strong);
        assert_eq!(
            switch.state().phase(),
            BypassPhase::Accept,
            "an order that has ended is none"
        );
    }

    #[test]
    fn while_it_stands_aside_a_proxy_permits_everything_and_says_by_whose_word() {
        let (switch, _) = switch();
        switch.ask(Source::Control, bypass(BypassPhase::Accept, "ada"));
        let policy = switch.state().policy().unwrap();
        assert_eq!(policy.mode(80), MtlsMode::Permissive);
        assert!(policy.name.contains("ada"), "{}", policy.name);
    }
}
