//! Kubernetes quantities: `100m`, `1.5`, `64Mi`, `1e3`.
//!
//! The grammar is that of Kubernetes' `resource.Quantity`. A quantity keeps the
//! text that it was read from, because a pod spec should show what a person
//! wrote, and a value by which it can be compared.

use std::fmt;
use std::str::FromStr;

/// Units of the value per whole one: enough for the finest suffix, `n`.
const NANO: u128 = 1_000_000_000;

/// The longest text that is accepted, in bytes. Kubernetes itself has no need
/// of more than 18 digits and a suffix.
const MAX_LENGTH: usize = 32;

/// What a suffix multiplies by, as a fraction.
const SUFFIXES: &[(&str, u128, u128)] = &[
    ("", 1, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
];

/// An amount of CPU, memory or storage. Never negative.
#[derive(Clone, Debug)]
pub struct Quantity {
    text: String,
    nanos: u128,
}

impl Quantity {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The amount in whole ones (bytes, for memory), where it is whole.
    pub fn whole(&self) -> Option<u128> {
        self.nanos.is_multiple_of(NANO).then_some(self.nanos / NANO)
    }

    /// The amount in thousandths (millicores, for CPU), where it is a whole
    /// number of them.
    pub fn millis(&self) -> Option<u128> {
        let per_milli = NANO / 1_000;
        self.nanos
            .is_multiple_of(per_milli)
            .then_some(self.nanos / per_milli)
    }
}

/// Equal amounts are equal, however they are written: `1` and `1000m`.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse(text) {
            Some(nanos) => Ok(Self {
                text: text.to_owned(),
                nanos,
            }),
            None => Err(QuantityError(text.chars().take(MAX_LENGTH).collect())),
        }
    }
}

/// The amount in billionths; nothing where the text is no quantity, is finer
/// than a billionth or greater than what 64 bits hold.
fn parse(text: &str) -> Option<u128> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number_length = unsigned
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .count();
    let (number, suffix) = unsigned.split_at(number_length);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, per) = scale(suffix)?;
    let fraction_scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let dividend = digits.checked_mul(times)?.checked_mul(NANO)?;
    let divisor = per.checked_mul(fraction_scale)?;
    let nanos = dividend / divisor;
    let is_exact = dividend.is_multiple_of(divisor);
    (is_exact && nanos / NANO <= i64::MAX as u128).then_some(nanos)
}

/// What a suffix multiplies by: one of the table, or a decimal exponent.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    if let Some((_, times, per)) = SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        return Some((*times, *per));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

/// A text that is not a quantity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not a quantity: write a number, with a suffix where there is one, such as 100m, \
     1.5, 64Mi or 2G"
)]
pub struct QuantityError(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn amounts_compare_however_they_are_written() {
        for (left, right) in [
            ("1", "1000m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+2", "2"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("25e-1", "2.5"),
            ("128Mi", "134217728"),
            ("1Gi", "1024Mi"),
            ("1u", "1000n"),
        ] {
            assert_eq!(quantity(left), quantity(right), "{left} {right}");
        }
        assert!(quantity("129Mi") > quantity("128Mi"));
        assert!(quantity("1G") < quantity("1Gi"));
    }

    #[test]
    fn the_text_stays_as_it_was_written() {
        assert_eq!(quantity("0.10").to_string(), "0.10");
    }

    #[test]
    fn whole_amounts_and_thousandths_are_told_apart() {
        assert_eq!(quantity("64Ki").whole(), Some(65_536));
        assert_eq!(quantity("100m").whole(), None);
        assert_eq!(quantity("1.5").millis(), Some(1_500));
        assert_eq!(quantity("100u").millis(), None);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            "-1",
            "1 Mi",
            "Mi",
            ".",
            "1.2.3",
            "1mi",
            "1MB",
            "1core",
            "0x10",
            "1e",
            "1e+",
            "1e99",
            "1e-99",
            "1,5",
            "١",
            "16Ei",
            "1\n",
            "0.1n",
            "00000000000000000000000000000000000000001",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }
}
