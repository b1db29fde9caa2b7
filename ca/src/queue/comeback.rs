//! When those who are turned away should come again: one after the other, at
//! the pace at which callers are served, so that a storm comes back as a line.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest and the longest delay. A client's certificate outlasts the
/// longest, and one that has none is not kept from working for longer.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How much of the pace is given to those who come again; the rest is for those
/// who come first.
const SHARE: f64 = 0.8;
/// How long turns are counted before the pace is known again.
const WINDOW: Duration = Duration::from_secs(1);
/// The pace that is expected at first, and the least that is assumed: an issuer
/// that stands still may go on at any moment.
const FIRST_PACE: f64 = 500.0;
const LEAST_PACE: f64 = 10.0;

/// Gives everybody another moment.
#[derive(Debug)]
pub struct Comeback {
    /// Turns a second.
    pace: f64,
    counted: u32,
    counts_from: Instant,
    /// The next moment that nobody has yet.
    next: Instant,
}

impl Comeback {
    pub fn new(now: Instant) -> Self {
        Self {
            pace: FIRST_PACE,
            counted: 0,
            counts_from: now,
            next: now,
        }
    }

    /// Counts a turn. Only a queue in which somebody waits shows how fast it can
    /// be; another shows how much is asked of it.
    pub fn served(&mut self, now: Instant, somebody_waits: bool) {
        self.counted += 1;
        let elapsed = now.duration_since(self.counts_from);
        if elapsed < WINDOW {
            return;
        }
        let measured = f64::from(self.counted) / elapsed.as_secs_f64();
        let mean = f64::midpoint(self.pace, measured);
        self.pace = if somebody_waits {
            mean
        } else {
            mean.max(self.pace)
        };
        self.pace = self.pace.max(LEAST_PACE);
        (self.counted, self.counts_from) = (0, now);
    }

    /// Turns a second, as far as is known.
    pub fn pace(&self) -> f64 {
        self.pace
    }

    /// How many have their turn within some time.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of turns, rounded down; a huge one saturates"
    )]
    pub fn turns_in(&self, time: Duration) -> usize {
        (self.pace * time.as_secs_f64()) as usize
    }

    /// How long somebody should stay away, while so many wait.
    pub fn delay(&mut self, now: Instant, waiting: usize) -> Duration {
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let served = Duration::from_secs_f64(f64::from(waiting) / self.pace);
        let earliest = now + served.clamp(SHORTEST, LONGEST / 4);
        // Beyond the longest the moments are given again from the earliest on.
        let moment = if self.next < earliest || self.next > now + LONGEST {
            earliest
        } else {
            self.next
        };
        self.next = moment + Duration::from_secs_f64(1.0 / (self.pace * SHARE));
        moment - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_comes_back_evenly() {
        let now = Instant::now();
        let mut comeback = Comeback::new(now);
        let delays: Vec<_> = (0..10_000).map(|_| comeback.delay(now, 100)).collect();
        assert!(
            delays
                .iter()
                .all(|delay| (SHORTEST..=LONGEST).contains(delay))
        );
        // In no second come more than are served in one.
        for second in 1..60 {
            let second = Duration::from_secs(second);
            let of_second = |delay: &&Duration| (second..second + WINDOW).contains(*delay);
            let count = delays.iter().filter(of_second).count();
            assert!(count <= 500, "{count} come {second:?} later");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_follows_how_fast_callers_are_served() {
        let mut comeback = Comeback::new(Instant::now());
        for _ in 0..10 {
            for _ in 0..100 {
                tokio::time::advance(Duration::from_millis(1)).await;
                for _ in 0..30 {
                    comeback.served(Instant::now(), true);
                }
            }
        }
        for _ in 0..10 {
            tokio::time::advance(WINDOW / 10).await;
            comeback.served(Instant::now(), true);
        }
        let fast = comeback.pace();
        for _ in 0..10 {
            tokio::time::advance(WINDOW).await;
            comeback.served(Instant::now(), false);
        }
        assert!(comeback.pace() >= fast, "a quiet hour is no slowness");
        for _ in 0..10 {
            tokio::time::advance(WINDOW).await;
            comeback.served(Instant::now(), true);
        }
        assert!(comeback.pace() < fast / 10.0 && comeback.pace() >= LEAST_PACE);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_sent_away_for_longer_than_a_minute() {
        let now = Instant::now();
        let mut comeback = Comeback::new(now);
        for _ in 0..100_000 {
            let delay = comeback.delay(now, usize::MAX);
            assert!(delay >= SHORTEST && delay <= LONGEST);
        }
    }
}
