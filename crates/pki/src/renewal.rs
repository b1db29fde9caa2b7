//! When a certificate is due for renewal.

use std::time::{Duration, SystemTime};

/// The point at which to ask for the next certificate: between 50 % and 80 % of
/// the lifetime, at a place that `random` (0 to 1) chooses, so that workloads
/// which started together do not come back together.
///
/// It follows the certificate's own dates, not the machine's clock: a clock
/// that is wrong then does not change how much of a certificate is used.
pub fn point(not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let lifetime = not_after
        .duration_since(not_before)
        .unwrap_or(Duration::ZERO);
    // Anything that is not a number between 0 and 1 counts as the nearest.
    let random = if random.is_nan() {
        0.0
    } else {
        random.clamp(0.0, 1.0)
    };
    not_before + lifetime.mul_f64(0.3_f64.mul_add(random, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn the_point_lies_between_half_and_four_fifths_of_the_lifetime() {
        let end = UNIX_EPOCH + Duration::from_secs(1000);
        for (random, seconds) in [(0.0, 500), (0.5, 650), (1.0, 800)] {
            let point = point(UNIX_EPOCH, end, random);
            let expected = UNIX_EPOCH + Duration::from_secs(seconds);
            let off = point
                .duration_since(expected)
                .unwrap_or_else(|error| error.duration());
            assert!(off < Duration::from_millis(1), "{random}: {point:?}");
        }
    }

    #[test]
    fn nonsense_in_is_a_point_within_the_lifetime_out() {
        let end = UNIX_EPOCH + Duration::from_secs(1000);
        for random in [-1.0, 2.0, f64::NAN, f64::INFINITY] {
            let point = point(UNIX_EPOCH, end, random);
            assert!(UNIX_EPOCH < point && point < end);
        }
        assert_eq!(point(end, UNIX_EPOCH, 0.5), end);
    }
}
