//! The names that resources are asked for by.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The longest name of a resource that is accepted, in bytes: two names of
/// Kubernetes, which have at most 253 each, a port, and what stands between.
pub const MAX_NAME_LENGTH: usize = 253 * 2 + 8;

/// The kinds of resources.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum ResourceKind {
    Inbound,
    Destination,
    Endpoints,
    Bypass,
}

impl ResourceKind {
    pub const ALL: [Self; 4] = [
        Self::Inbound,
        Self::Destination,
        Self::Endpoints,
        Self::Bypass,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "Inbound",
            Self::Destination => "Destination",
            Self::Endpoints => "Endpoints",
            Self::Bypass => "Bypass",
        }
    }

    /// The name of the kind on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Inbound => "type.googleapis.com/bulkhead.discovery.v1.Inbound",
            Self::Destination => "type.googleapis.com/bulkhead.discovery.v1.Destination",
            Self::Endpoints => "type.googleapis.com/bulkhead.discovery.v1.Endpoints",
            Self::Bypass => "type.googleapis.com/bulkhead.discovery.v1.Bypass",
        }
    }

    /// Nothing where the text names no kind of ours.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pod: `<namespace>/<name>`.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NameError::new(text, "write <namespace>/<pod>");
        let (namespace, name) = text.split_once('/').ok_or_else(error)?;
        if !(is_object_name(namespace) && is_object_name(name)) {
            return Err(error());
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// The endpoints of one port of a Service: `<namespace>/<service>:<port>`.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct EndpointsName {
    pub namespace: String,
    pub service: String,
    pub port: u16,
}

impl fmt::Display for EndpointsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.service, self.port)
    }
}

impl FromStr for EndpointsName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NameError::new(text, "write <namespace>/<service>:<port>");
        let (namespace, rest) = text.split_once('/').ok_or_else(error)?;
        let (service, port) = rest.split_once(':').ok_or_else(error)?;
        // `u16` would also read "+80" and "080".
        let port_is_plain = !port.starts_with(['+', '0']);
        let port = port.parse().map_err(|_| error())?;
        if !(is_object_name(namespace) && is_object_name(service) && port_is_plain) {
            return Err(error());
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port,
        })
    }
}

/// A name of Kubernetes: lower-case letters, digits, `-` and `.`.
fn is_object_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}

/// The name of a resource of any kind.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum ResourceName {
    Inbound(PodName),
    Destination(SocketAddr),
    Endpoints(EndpointsName),
    Bypass(PodName),
}

impl ResourceName {
    /// Reads the name of a resource of this kind.
    ///
    /// An address must be written as Rust and Go write it, since the answer
    /// carries the name of the question: `[2001:db8::1]:80`, never with zeros
    /// that could be left out.
    pub fn parse(kind: ResourceKind, text: &str) -> Result<Self, NameError> {
        match kind {
            ResourceKind::Inbound => text.parse().map(Self::Inbound),
            ResourceKind::Bypass => text.parse().map(Self::Bypass),
            ResourceKind::Endpoints => text.parse().map(Self::Endpoints),
            ResourceKind::Destination => match text.parse::<SocketAddr>() {
                Ok(address) if address.to_string() == text => Ok(Self::Destination(address)),
                _ => Err(NameError::new(text, "write <ip>:<port>")),
            },
        }
    }

    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Inbound(_) => ResourceKind::Inbound,
            Self::Destination(_) => ResourceKind::Destination,
            Self::Endpoints(_) => ResourceKind::Endpoints,
            Self::Bypass(_) => ResourceKind::Bypass,
        }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound(pod) | Self::Bypass(pod) => pod.fmt(f),
            Self::Destination(address) => address.fmt(f),
            Self::Endpoints(name) => name.fmt(f),
        }
    }
}

/// A text that names no resource.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not the name of a resource: {form}")]
pub struct NameError {
    text: String,
    form: &'static str,
}

impl NameError {
    fn new(text: &str, form: &'static str) -> Self {
        // A hostile text may be long; its beginning tells enough.
        let text = text.chars().take(128).collect();
        Self { text, form }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_written_as_it_is_read() {
        for (kind, text) in [
            (ResourceKind::Inbound, "shop/cart-7d9f-x2x"),
            (ResourceKind::Bypass, "shop/db-0"),
            (ResourceKind::Destination, "10.0.0.1:80"),
            (ResourceKind::Destination, "[2001:db8::1]:8080"),
            (ResourceKind::Endpoints, "shop/cart:8080"),
        ] {
            let name = ResourceName::parse(kind, text).unwrap();
            assert_eq!((name.kind(), name.to_string().as_str()), (kind, text));
        }
    }

    #[test]
    fn a_text_that_is_not_quite_a_name_is_refused() {
        let long = format!("shop/{}", "a".repeat(254));
        for (kind, text) in [
            (ResourceKind::Inbound, ""),
            (ResourceKind::Inbound, "cart"),
            (ResourceKind::Inbound, "shop/"),
            (ResourceKind::Inbound, "/cart"),
            (ResourceKind::Inbound, "shop/cart/x"),
            (ResourceKind::Inbound, "shop/../x"),
            (ResourceKind::Inbound, "Shop/cart"),
            (ResourceKind::Inbound, long.as_str()),
            (ResourceKind::Destination, "10.0.0.1"),
            (ResourceKind::Destination, "10.0.0.1:080"),
            (ResourceKind::Destination, "[2001:0db8::1]:80"),
            (ResourceKind::Destination, "cart:80"),
            (ResourceKind::Endpoints, "shop/cart"),
            (ResourceKind::Endpoints, "shop/cart:"),
            (ResourceKind::Endpoints, "shop/cart:0"),
            (ResourceKind::Endpoints, "shop/cart:+1"),
            (ResourceKind::Endpoints, "shop/cart:65536"),
            (ResourceKind::Endpoints, "shop/cart:80:80"),
        ] {
            assert!(ResourceName::parse(kind, text).is_err(), "{kind} {text:?}");
        }
    }

    #[test]
    fn the_longest_name_fits_the_limit() {
        let part = "a".repeat(253);
        let name = format!("{part}/{part}:65535");
        assert!(ResourceName::parse(ResourceKind::Endpoints, &name).is_ok());
        assert!(name.len() <= MAX_NAME_LENGTH);
    }

    #[test]
    fn kinds_are_known_by_their_type_urls() {
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::from_type_url(kind.type_url()), Some(kind));
            assert!(kind.type_url().ends_with(kind.as_str()));
        }
        assert_eq!(ResourceKind::from_type_url("Inbound"), None);
    }
}
