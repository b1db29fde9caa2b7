//! How much one HTTP/2 connection may keep.
//!
//! Until they are passed on, the bytes of a stream are the proxy's to keep, and the
//! sender decides how many it sends: as many as the windows permit. Windows that
//! suit a wide network would let a few hundred connections take what a small
//! container has, so they follow the container's size.

/// The limits of one connection. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Limits {
    /// Streams that a client may have open at once.
    pub(super) streams: u32,
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
    /// What may wait to be sent, for each stream.
    pub(super) send_buffer: usize,
}

const KIB: u64 = 1024;

impl Limits {
    /// What suits a process that may use so much memory.
    pub(super) fn within(limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        let share = |of: u64, least: u64, most: u64| (limit / of).clamp(least, most) as u32;
        Self {
            streams: share(512 * KIB, 64, 256),
            stream_window: share(KIB, 64 * KIB, KIB * KIB),
            connection_window: share(KIB / 2, 64 * KIB, KIB * KIB),
            send_buffer: share(2 * KIB, 16 * KIB, 256 * KIB) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_container_keeps_more() {
        let mib = |count: u64| Limits::within(Some(count << 20));
        let small = Limits {
            streams: 64,
            stream_window: 64 << 10,
            connection_window: 64 << 10,
            send_buffer: 16 << 10,
        };
        assert_eq!(mib(16), small);
        assert_eq!(mib(32).streams, 64);
        let usual = Limits {
            streams: 256,
            stream_window: 128 << 10,
            connection_window: 256 << 10,
            send_buffer: 64 << 10,
        };
        assert_eq!(mib(128), usual);
        assert_eq!(Limits::within(None), mib(1 << 20));
    }
}
