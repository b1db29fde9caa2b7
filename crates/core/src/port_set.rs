//! Sets of TCP ports, as people write them: `80,443,8000-8100`.

use std::fmt;
use std::str::FromStr;

/// The most ranges that one set may have. More is a mistake, or an attack on
/// whoever has to search it.
const MAX_RANGES: usize = 256;

/// A set of TCP ports. Port 0 is never in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PortSet {
    /// Sorted, and neither touching nor overlapping.
    ranges: Vec<(u16, u16)>,
}

impl PortSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn contains(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// First and last port of each range, in order.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        ports.into_iter().map(|port| (port, port)).collect()
    }
}

impl FromIterator<(u16, u16)> for PortSet {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut ranges: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match ranges.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges }
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PortSetError(text.chars().take(64).collect());
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(0) | Err(_) => Err(error()),
            Ok(port) => Ok(port),
        };
        let mut ranges = Vec::new();
        for item in text.split(',').filter(|_| !text.trim().is_empty()) {
            let range = match item.split_once('-') {
                Some((first, last)) => (port(first)?, port(last)?),
                None => (port(item)?, port(item)?),
            };
            if range.0 > range.1 || ranges.len() == MAX_RANGES {
                return Err(error());
            }
            ranges.push(range);
        }
        Ok(ranges.into_iter().collect())
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

/// A text that is not a set of ports.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not a list of ports: write numbers from 1 to 65535 and ranges with commas between \
     them, such as 80,443,8000-8100 (at most {MAX_RANGES})"
)]
pub struct PortSetError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_sorted_and_merged() {
        for (text, expected) in [
            ("", ""),
            ("443,80", "80,443"),
            ("80, 81,82", "80-82"),
            ("8000-8100,8050-8200", "8000-8200"),
            ("65535,65534", "65534-65535"),
        ] {
            assert_eq!(text.parse::<PortSet>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for text in [
            "0", "65536", "80,", ",80", "9-8", "a", "80;81", "-1", "1-", "80 81",
        ] {
            assert!(text.parse::<PortSet>().is_err(), "{text:?}");
        }
        let many = vec!["80"; MAX_RANGES + 1].join(",");
        assert!(many.parse::<PortSet>().is_err());
    }

    #[test]
    fn membership_follows_the_ranges() {
        let set: PortSet = "80,8000-8100".parse().unwrap();
        assert!(set.contains(80) && set.contains(8000) && set.contains(8100));
        assert!(!set.contains(81) && !set.contains(8101));
    }
}
