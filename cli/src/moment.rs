//! Times and spans as people say them: `in 3650 days`, `2 hours ago`, `60d`.

use std::time::{Duration, SystemTime};

use bulkhead_core::duration;
use k8s_openapi::jiff::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;

/// Reads a span that may begin with days, which are 24 hours: `60d`, `1d12h`.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration: write such as 60d, 36h or 1h30m");
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) => (days.parse::<u64>().map_err(|_| error())?, rest),
        None => (0, text),
    };
    let days = days.checked_mul(DAY).map(Duration::from_secs);
    let rest = match (days, rest) {
        (Some(days), "") if !days.is_zero() => return Ok(days),
        (_, rest) => duration::parse(rest).map_err(|_| error())?,
    };
    days.and_then(|days| days.checked_add(rest))
        .ok_or_else(error)
}

/// A span in the unit that says enough: `3650 days`, `23 hours`, `0 seconds`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / MINUTE, "minute"),
        7_200..172_800 => (seconds / HOUR, "hour"),
        _ => (seconds / DAY, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

/// How far a time is from now.
pub(crate) fn relative(time: SystemTime, now: SystemTime) -> String {
    match time.duration_since(now) {
        Ok(left) => format!("in {}", span(left)),
        Err(passed) => format!("{} ago", span(passed.duration())),
    }
}

/// A time to the second, by RFC 3339.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

/// A time and how far away it is: `2027-01-01T00:00:00Z (in 40 days)`.
pub(crate) fn both(time: SystemTime, now: SystemTime) -> String {
    format!("{} ({})", timestamp(time), relative(time, now))
}

/// The time that is this many seconds after the beginning of 1970.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_can_be_written_with_and_without_smaller_units() {
        let hours = |count: u64| Duration::from_secs(count * HOUR);
        for (text, expected) in [
            ("60d", hours(60 * 24)),
            ("1d12h", hours(36)),
            ("36h", hours(36)),
            ("0d5m", Duration::from_secs(300)),
        ] {
            assert_eq!(parse_span(text), Ok(expected), "{text}");
        }
        for text in ["", "d", "60", "1.5d", "-1d", "5m1d", "999999999999999999d"] {
            let error = parse_span(text).unwrap_err();
            assert!(error.contains("60d"), "{text}: {error}");
        }
    }

    #[test]
    fn a_time_is_said_in_the_unit_that_matters() {
        let now = at(1_800_000_000);
        let days = |count| Duration::from_secs(count * DAY);
        assert_eq!(relative(now + days(3650), now), "in 3650 days");
        assert_eq!(relative(now + days(1), now), "in 24 hours");
        assert_eq!(
            relative(now - Duration::from_secs(120), now),
            "2 minutes ago"
        );
        assert_eq!(relative(now + Duration::from_secs(1), now), "in 1 second");
        assert_eq!(both(now, now), "2027-01-15T08:00:00Z (in 0 seconds)");
    }
}
