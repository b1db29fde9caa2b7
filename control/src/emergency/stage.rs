//! The stages of a bypass.
//!
//! ```text
//!           told to accept        all took it, or enough time        it is over
//!  nothing ───────────────▶ Accepting ──────▶ Forwarding ──────▶ Withdrawing ──▶ nothing
//!                              └───────────── it is over ──────────────────────────▲
//! ```
//!
//! A client that sends plaintext to a server that does not take it yet is
//! refused, so servers come first on the way there and last on the way back.

use std::time::Duration;

use bulkhead_core::discovery::BypassPhase;
use tokio::time::Instant;

/// How long each step waits though all proxies of this replica have taken it:
/// those of other replicas have had the time as well.
pub const AT_LEAST: Duration = Duration::from_millis(500);
/// How long each step waits for a proxy that does not answer. Two steps fit the
/// two seconds in which a bypass is promised.
pub const AT_MOST: Duration = Duration::from_secs(1);

/// How far a bypass has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Servers are being told, since then.
    Accepting(Instant),
    /// Clients have been told.
    Forwarding,
    /// Clients are being told to stop, since then; servers accept still.
    Withdrawing(Instant),
}

impl Stage {
    /// What proxies are told.
    pub fn phase(self) -> BypassPhase {
        match self {
            Self::Accepting(_) | Self::Withdrawing(_) => BypassPhase::Accept,
            Self::Forwarding => BypassPhase::Forward,
        }
    }

    /// The stage to be in now; nothing where the bypass is over and done with.
    /// `is_on` says whether it is still wanted, `taken` whether all connected
    /// proxies have taken what they were told.
    pub fn advance(self, now: Instant, is_on: bool, taken: bool) -> Option<Self> {
        match self {
            // Nobody forwards yet: servers may go back at once.
            Self::Accepting(_) if !is_on => None,
            Self::Accepting(since) if is_over(since, now, taken) => Some(Self::Forwarding),
            Self::Forwarding if !is_on => Some(Self::Withdrawing(now)),
            // Servers accept all the while.
            Self::Withdrawing(_) if is_on => Some(Self::Forwarding),
            Self::Withdrawing(since) if is_over(since, now, taken) => None,
            stage => Some(stage),
        }
    }

    /// When to look again, if nothing happens before.
    pub fn deadline(self, taken: bool) -> Option<Instant> {
        match self {
            Self::Accepting(since) | Self::Withdrawing(since) => {
                Some(since + if taken { AT_LEAST } else { AT_MOST })
            }
            Self::Forwarding => None,
        }
    }
}

fn is_over(since: Instant, now: Instant, taken: bool) -> bool {
    now >= since + AT_MOST || (taken && now >= since + AT_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Accepting, Forwarding, Withdrawing};

    const SHORTLY: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn clients_forward_when_all_servers_accept_but_not_before_other_replicas_had_time() {
        let start = Instant::now();
        let stage = Accepting(start);
        assert_eq!(stage.advance(start + SHORTLY, true, true), Some(stage));
        assert_eq!(
            stage.advance(start + AT_LEAST, true, true),
            Some(Forwarding)
        );
    }

    #[tokio::test]
    async fn a_proxy_that_does_not_answer_holds_nobody_up_for_long() {
        let start = Instant::now();
        let stage = Accepting(start);
        assert_eq!(stage.advance(start + AT_LEAST, true, false), Some(stage));
        assert_eq!(
            stage.advance(start + AT_MOST, true, false),
            Some(Forwarding)
        );
    }

    #[tokio::test]
    async fn on_the_way_back_servers_accept_until_no_client_forwards() {
        let start = Instant::now();
        let back = Forwarding.advance(start, false, true).unwrap();
        assert_eq!(back, Withdrawing(start));
        assert_eq!(back.phase(), BypassPhase::Accept);
        assert_eq!(back.advance(start + AT_LEAST, false, false), Some(back));
        assert_eq!(back.advance(start + AT_LEAST, false, true), None);
        assert_eq!(back.advance(start + AT_MOST, false, false), None);
    }

    #[tokio::test]
    async fn a_change_of_mind_does_not_begin_again() {
        let start = Instant::now();
        assert_eq!(Accepting(start).advance(start, false, false), None);
        assert_eq!(
            Withdrawing(start).advance(start, true, false),
            Some(Forwarding)
        );
    }
}
