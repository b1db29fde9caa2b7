//! How much strangers and callers can make the CA hold at once.
//!
//! With what TLS and HTTP/2 keep for a connection (some 30 KiB), and a call with
//! its token in line (some 10 KiB), the defaults come to less than 100 MiB when
//! everything is full.

use std::time::Duration;

/// Descriptors for all but clients' connections: probes and metrics, the API
/// server, files, the runtime.
const OTHER_DESCRIPTORS: u64 = 256;

/// The limits. Nobody needs to set them; tests make them small.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Accepted connections that wait for their handshake: no memory but a socket.
    pub connections_waiting: usize,
    /// Connections in their handshake, or that proved nothing since.
    pub strangers: usize,
    /// Connections that had a call with a good token.
    pub guests: usize,
    /// Connections that were asked to leave for others, and have not left yet.
    pub leaving: usize,
    /// Calls in each of the two lines, of all callers together.
    pub calls_waiting: usize,
    /// Calls in line of one caller. A workload needs one certificate at a time.
    pub calls_waiting_of_one: usize,
    /// Bytes that a client may send until a call of its has a good token, and then
    /// until the next: some hundred calls, and a flood is over in milliseconds.
    pub unproved_bytes: usize,
    /// How long an accepted connection waits for its handshake. Clients give a
    /// whole call ten seconds, so that later would be for nobody.
    pub connection_patience: Duration,
    /// How long a client may take to agree on TLS.
    pub handshake: Duration,
    /// How long a client may then take until a call of its had a good token.
    pub stranger: Duration,
    /// How long a call waits in each of the two lines. With a review of its token
    /// in between it is answered within the ten seconds that clients wait.
    pub call_patience: Duration,
    /// How long the API server may take for a review. A client's own deadline is ten
    /// seconds or more, so that there is time for an answer that says so.
    pub review: Duration,
    /// How long a call may take, from its headers to its answer.
    pub call: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_waiting: 4096,
            strangers: 768,
            guests: 1024,
            leaving: 128,
            calls_waiting: 1024,
            calls_waiting_of_one: 32,
            unproved_bytes: 512 * 1024,
            connection_patience: Duration::from_secs(8),
            handshake: Duration::from_secs(10),
            stranger: Duration::from_secs(20),
            call_patience: Duration::from_secs(4),
            review: Duration::from_secs(5),
            call: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// All connections together.
    pub fn connections(&self) -> usize {
        self.connections_waiting + self.strangers + self.guests + self.leaving
    }

    /// No more connections than this process may have descriptors for: fewer of
    /// each kind, in the same proportion.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let room = descriptors.saturating_sub(OTHER_DESCRIPTORS);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let all = self.connections();
        if room >= all {
            return self;
        }
        let part = |of: usize| (of * room / all).max(1);
        let fitting = Self {
            connections_waiting: part(self.connections_waiting),
            strangers: part(self.strangers),
            guests: part(self.guests),
            leaving: part(self.leaving),
            ..self
        };
        tracing::warn!(
            descriptors,
            connections = fitting.connections(),
            wanted = all,
            "the hard limit of open descriptors leaves room for fewer connections than a storm needs; the container runtime sets it (LimitNOFILE of its service)"
        );
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_descriptors_that_there_are() {
        let limits = Limits::default();
        for descriptors in [1024, 4096, 6000] {
            let fitting = limits.within(descriptors);
            let room = usize::try_from(descriptors - OTHER_DESCRIPTORS).unwrap();
            assert!(fitting.connections() <= room, "{descriptors}: {fitting:?}");
            assert!(fitting.connections() > room * 9 / 10, "{descriptors}");
        }
        for descriptors in [20_000, u64::MAX] {
            let fitting = limits.within(descriptors);
            assert_eq!(fitting.connections(), limits.connections());
        }
        assert!(limits.within(0).strangers > 0, "it serves somebody");
    }
}
