//! Tries the rules with connections, because rules that read well may still not
//! work: a kernel without conntrack, another table in the way.
//!
//! Nothing leaves the pod where the rules work: the connection to an address of
//! the documentation ranges (RFC 5737, RFC 3849) ends at a socket of this
//! process, on the proxy's outbound port. Where the proxy has that port already,
//! or there is no route at all, this is left out, and said.
//!
//! What comes from outside cannot be tried from within. For that the rules are
//! read back, like all others.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bulkhead_core::redirect::{RedirectConfig, Selection};
use rustix::io::Errno;
use socket2::SockRef;

/// How long a connection within the pod may take.
const LIMIT: Duration = Duration::from_secs(3);

/// What one attempt showed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A connection to this address arrived at the proxy's outbound port.
    Redirected(SocketAddr),
    /// A connection to this loopback address arrived where it was going.
    LeftAlone(SocketAddr),
    /// Nothing was tried, for this reason.
    LeftOut(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirected(to) => write!(f, "a connection to {to} was redirected"),
            Self::LeftAlone(to) => write!(f, "a connection to {to} was left alone"),
            Self::LeftOut(reason) => write!(f, "not tried: {reason}"),
        }
    }
}

/// Why rules that were set do not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the rules are set, but a connection to {to} did not arrive at {expected}: {problem}; is \
         there another program that sets rules in this pod (`nft list ruleset`), and does the \
         kernel track connections (module nf_conntrack)?"
    )]
    NotRedirected {
        to: SocketAddr,
        expected: SocketAddr,
        problem: String,
    },
    #[error(
        "the rules are set, but a connection of this pod to itself ({to}) did not arrive: \
         {problem}; is there another program that sets rules in this pod (`nft list ruleset`)?"
    )]
    Loopback { to: SocketAddr, problem: String },
    #[error("opening a socket to try the rules with failed: {0}")]
    Socket(#[from] io::Error),
}

/// Tries what can be tried, for IPv4 and IPv6.
pub fn try_out(config: &RedirectConfig) -> Result<Vec<Outcome>, Error> {
    let mut outcomes = Vec::new();
    for loopback in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        outcomes.push(outbound(config, loopback)?);
        outcomes.push(to_itself(loopback)?);
    }
    Ok(outcomes)
}

fn outbound(config: &RedirectConfig, loopback: IpAddr) -> Result<Outcome, Error> {
    let left_out = |reason: String| Ok(Outcome::LeftOut(reason));
    if rustix::process::geteuid().as_raw() == config.proxy_uid {
        let uid = config.proxy_uid;
        return left_out(format!(
            "this is user {uid}, whose connections are left alone"
        ));
    }
    let Some(to) = captured_destination(config, loopback) else {
        return left_out(format!(
            "no connection to an address like {loopback} is to be redirected"
        ));
    };
    let expected = SocketAddr::new(loopback, config.outbound_port);
    let listener = match TcpListener::bind(expected) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return left_out(format!(
                "{expected} is taken, probably by a proxy that runs already"
            ));
        }
        Err(error) if has_no_such_family(&error) => {
            return left_out(format!("there is no {loopback} here"));
        }
        Err(error) => return Err(error.into()),
    };
    if !has_route(to) {
        return left_out(format!("there is no route to {to}"));
    }
    let problem = match dial(to, &listener) {
        Ok(arrived) if arrived.original_destination == Some(to) => {
            return Ok(Outcome::Redirected(to));
        }
        Ok(arrived) => format!(
            "its original destination is {:?} there",
            arrived.original_destination
        ),
        Err(error) => error.to_string(),
    };
    Err(Error::NotRedirected {
        to,
        expected,
        problem,
    })
}

fn to_itself(loopback: IpAddr) -> Result<Outcome, Error> {
    let listener = match TcpListener::bind((loopback, 0)) {
        Ok(listener) => listener,
        Err(error) if has_no_such_family(&error) => {
            return Ok(Outcome::LeftOut(format!("there is no {loopback} here")));
        }
        Err(error) => return Err(error.into()),
    };
    let to = listener.local_addr()?;
    match dial(to, &listener) {
        Ok(_) => Ok(Outcome::LeftAlone(to)),
        Err(error) => Err(Error::Loopback {
            to,
            problem: error.to_string(),
        }),
    }
}

/// Somewhere outside that must be redirected, if there is such a place: an
/// address that documentation has for itself, or else one that is asked for.
fn captured_destination(config: &RedirectConfig, like: IpAddr) -> Option<SocketAddr> {
    let documentation: [IpAddr; 4] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    let included = match &config.include_outbound_cidrs {
        Selection::All => &[],
        Selection::Only(cidrs) => cidrs.as_slice(),
    };
    let addresses = documentation
        .into_iter()
        .chain(included.iter().map(|cidr| cidr.address()))
        .filter(|address| address.is_ipv4() == like.is_ipv4() && !address.is_unspecified());
    let included = config.include_outbound_ports.ranges().iter();
    let ports: Vec<u16> = [80, 443, 8080, 9]
        .into_iter()
        .chain(included.map(|(first, _)| *first))
        .collect();
    addresses
        .flat_map(|address| {
            ports
                .iter()
                .map(move |port| SocketAddr::new(address, *port))
        })
        .find(|to| config.captures_outbound(to.ip(), to.port()))
}

/// A connection that was made, as its server sees it.
struct Arrived {
    original_destination: Option<SocketAddr>,
}

/// Dials, and waits for the connection to arrive at the listener; others may
/// arrive before it.
fn dial(to: SocketAddr, listener: &TcpListener) -> io::Result<Arrived> {
    let deadline = Instant::now() + LIMIT;
    let client = TcpStream::connect_timeout(&to, LIMIT)?;
    let from = client.local_addr()?;
    forget_when_closed(&client)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The time to read is, for a listener, the time to accept.
        SockRef::from(listener).set_read_timeout(Some(left))?;
        match listener.accept() {
            Ok((server, peer)) => {
                forget_when_closed(&server)?;
                if peer == from {
                    return Ok(Arrived {
                        original_destination: original_destination(&server),
                    });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leaves nothing behind that could be in the proxy's way.
fn forget_when_closed(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let original = if stream.local_addr().ok()?.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.ok()?.as_socket()
}

fn has_no_such_family(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&errno))
}

/// Whether packets to this address would leave. To connect a UDP socket is to
/// ask for the route, and sends nothing.
fn has_route(to: SocketAddr) -> bool {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0));
    socket.and_then(|socket| socket.connect(to)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_is_what_must_be_redirected() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let default = RedirectConfig::default();
        let tried = captured_destination(&default, v4).unwrap();
        assert_eq!(tried.to_string(), "192.0.2.1:80");
        let tried = captured_destination(&default, v6).unwrap();
        assert_eq!(tried.to_string(), "[2001:db8::1]:80");

        let config = RedirectConfig {
            include_outbound_cidrs: Selection::Only(vec!["10.1.0.0/16".parse().unwrap()]),
            exclude_outbound_ports: "80".parse().unwrap(),
            ..default
        };
        let tried = captured_destination(&config, v4).unwrap();
        assert_eq!(tried.to_string(), "10.1.0.0:443");
        assert_eq!(captured_destination(&config, v6), None);
    }
}
