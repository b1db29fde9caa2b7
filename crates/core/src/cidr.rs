//! IP address ranges as people write them: `10.0.0.0/8`, `2001:db8::/32`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The most ranges that one list may have. More is a mistake, or an attack on
/// whoever has to search it.
pub const MAX_CIDRS: usize = 256;

/// A range of IP addresses: all that share the first `prefix` bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Cidr {
    /// The first address; the bits past the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address, self.prefix) == Some(self.address)
    }
}

/// The address with every bit past the prefix set to zero; nothing where the
/// address has fewer bits than that.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Some(IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask)))
        }
        IpAddr::V6(address) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask)))
        }
        _ => None,
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// An address alone is the range of that one address. Bits past the prefix
    /// are dropped, as Istio and most tools do.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CidrError(text.chars().take(64).collect());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix = match prefix {
            // `u8` would also read "+8" and "08".
            Some(prefix) if prefix.starts_with(['+', '0']) && prefix != "0" => return Err(error()),
            Some(prefix) => prefix.parse().map_err(|_| error())?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        let address = masked(address, prefix).ok_or_else(error)?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A text that is not a range of addresses.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not a range of IP addresses: write CIDRs with commas between them, such as \
     10.0.0.0/8,2001:db8::/32 (at most {MAX_CIDRS})"
)]
pub struct CidrError(String);

/// Reads a list with commas between its items; an empty text is an empty list.
pub fn parse_list(text: &str) -> Result<Vec<Cidr>, CidrError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut cidrs = Vec::new();
    for item in text.split(',') {
        if cidrs.len() == MAX_CIDRS {
            return Err(CidrError(text.chars().take(64).collect()));
        }
        cidrs.push(item.trim().parse()?);
    }
    Ok(cidrs)
}

/// Writes a list in the form that [`parse_list`] reads.
pub fn format_list(cidrs: &[Cidr]) -> String {
    let items: Vec<_> = cidrs.iter().map(Cidr::to_string).collect();
    items.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_in_canonical_form() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn membership_follows_the_prefix_and_the_family() {
        let cidr: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(cidr.contains("10.255.0.1".parse().unwrap()));
        assert!(!cidr.contains("11.0.0.1".parse().unwrap()));
        assert!(!cidr.contains("::ffff:10.0.0.1".parse().unwrap()));
        let everything: Cidr = "::/0".parse().unwrap();
        assert!(everything.contains("::1".parse().unwrap()));
        assert!(!everything.contains("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn what_is_not_a_range_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "::/129",
            "host",
            "10.0.0.0/8/8",
            "10.0.0.0/",
            "/8",
            "*",
            "10.0.0.0 /8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn lists_are_read_back_and_bounded() {
        let list = parse_list("10.0.0.0/8, ::/0").unwrap();
        assert_eq!(format_list(&list), "10.0.0.0/8,::/0");
        assert_eq!(parse_list(" ").unwrap(), []);
        assert!(parse_list("10.0.0.0/8,").is_err());
        let many = vec!["::1"; MAX_CIDRS + 1].join(",");
        assert!(parse_list(&many).is_err());
    }
}
