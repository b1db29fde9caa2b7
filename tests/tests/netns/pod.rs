//! A pod, somebody outside, and the program under test.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bulkhead_redirect::netlink::Netfilter;
use bulkhead_redirect::ruleset::Ruleset;
use bulkhead_tests::config;
use bulkhead_tests::network::{Network, User};
use rustix::fs::XattrFlags;
use rustix::thread::CapabilitySet;
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;

pub(crate) const POD_V4: &str = "192.0.2.10";
pub(crate) const POD_V6: &str = "2001:db8::10";
/// Addresses of whoever is outside.
pub(crate) const OUTSIDE_V4: &str = "192.0.2.20";
pub(crate) const OUTSIDE_V6: &str = "2001:db8::20";
pub(crate) const FAR_V4: &str = "198.51.100.1";
pub(crate) const FAR_V6: &str = "2001:db8:f::1";

pub(crate) const APPLICATION: User = User::Id(1000);
pub(crate) const PROXY: User = User::Id(1337);

/// The program under test.
const NAME: &str = "bulkhead-init";
/// The user of the init container.
const INIT_UID: u32 = 65_532;
/// How long a connection within one machine may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A pod with an application and a proxy, linked with somebody outside.
///
/// The proxy is listeners on its ports; all listeners tell their clients who
/// they are and where the client was going.
pub(crate) struct Pod {
    pub(crate) network: Network,
    pub(crate) outside: Network,
    servers: Vec<Server>,
}

impl Pod {
    /// A pod whose application listens on these ports; whoever is outside
    /// listens there too.
    pub(crate) fn start(ports: &[u16]) -> Self {
        let mut pod = Self::without_servers();
        for address in ["127.0.0.1:15001", "[::1]:15001", "[::]:15006"] {
            pod.serve("proxy", address);
        }
        for port in ports {
            pod.serve("application", &format!("[::]:{port}"));
            let server = Server::start("outside", listen(&pod.outside, &format!("[::]:{port}")));
            pod.servers.push(server);
        }
        pod
    }

    /// A pod in which nobody listens.
    pub(crate) fn without_servers() -> Self {
        let pod = Self {
            network: Network::new(),
            outside: Network::new(),
            servers: Vec::new(),
        };
        pod.network.link("eth0", &pod.outside, "eth0");
        pod.network.configure(&format!(
            "addr add {POD_V4}/24 dev eth0\n\
             addr add {POD_V6}/64 dev eth0 nodad\n\
             route add default via {OUTSIDE_V4}\n\
             route add ::/0 via {OUTSIDE_V6}"
        ));
        pod.outside.configure(&format!(
            "addr add {OUTSIDE_V4}/24 dev eth0\n\
             addr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
             addr add {FAR_V4}/32 dev lo\n\
             addr add {FAR_V6}/128 dev lo nodad\n\
             addr add 192.0.2.1/24 dev eth0\n\
             addr add 2001:db8::1/64 dev eth0 nodad"
        ));
        pod
    }

    /// Adds a listener in the pod.
    pub(crate) fn serve(&mut self, who: &'static str, address: &str) {
        let server = Server::start(who, listen(&self.network, address));
        self.servers.push(server);
    }

    /// Runs `bulkhead-init` as the init container, with these variables, and
    /// expects it to succeed.
    pub(crate) fn init(&self, env: &[(&str, &str)]) -> String {
        let (success, output) = self.run(container(), Program::WithCapability, &[], env);
        assert!(success, "{output}");
        output
    }

    /// Runs `bulkhead-init`: whether it succeeded, and what it said.
    pub(crate) fn run(
        &self,
        user: User,
        program: Program,
        arguments: &[&str],
        env: &[(&str, &str)],
    ) -> (bool, String) {
        let directory = program.copy();
        let output = self.network.within(user, || {
            let mut command = Command::new(directory.path().join(NAME));
            command.args(arguments).env_clear();
            command.envs(env.iter().copied());
            command.output().expect("bulkhead-init starts")
        });
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// The rules that the pod has.
    pub(crate) fn rules(&self) -> Option<Ruleset> {
        self.with_netfilter(|netfilter| netfilter.read().unwrap())
    }

    pub(crate) fn with_netfilter<T: Send>(&self, work: impl FnOnce(&Netfilter) -> T + Send) -> T {
        self.network
            .within(User::Root, || work(&Netfilter::open().unwrap()))
    }

    /// Dials from inside the pod, and says who answered.
    pub(crate) fn call(&self, user: User, to: &str) -> Answer {
        ask(&dial(&self.network, user, None, to).unwrap())
    }

    /// Dials from inside the pod, from an address of it.
    pub(crate) fn call_from(&self, user: User, from: &str, to: &str) -> Answer {
        ask(&dial(&self.network, user, Some(from), to).unwrap())
    }

    /// Dials from outside, from one of the addresses there.
    pub(crate) fn called_from(&self, from: &str, to: &str) -> Answer {
        ask(&dial(&self.outside, User::Root, Some(from), to).unwrap())
    }

    /// Opens a connection from inside the pod, for [`ask`].
    pub(crate) fn connect(&self, user: User, to: &str) -> TcpStream {
        dial(&self.network, user, None, to).unwrap()
    }

    /// Opens a connection from outside, for [`ask`].
    pub(crate) fn connected(&self, to: &str) -> TcpStream {
        dial(&self.outside, User::Root, None, to).unwrap()
    }
}

/// What the injected init container is to the kernel.
pub(crate) fn container() -> User {
    User::Container(INIT_UID, CapabilitySet::NET_ADMIN)
}

/// The same in a namespace that does not allow NET_ADMIN.
pub(crate) fn container_without_net_admin() -> User {
    User::Container(INIT_UID, CapabilitySet::empty())
}

/// The file of `bulkhead-init`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// As in the image.
    WithCapability,
    /// As in an image that was copied without extended attributes.
    Bare,
}

impl Program {
    /// A copy that every user can reach, with the capabilities of this one.
    fn copy(self) -> TempDir {
        let everybody = std::fs::Permissions::from_mode(0o755);
        let directory = tempfile::Builder::new().permissions(everybody).tempdir();
        let directory = directory.unwrap();
        let copy = directory.path().join(NAME);
        // By another program: no file can be started that a process of ours may
        // still write to, and those that other tests start inherit our files.
        let copied = Command::new("cp")
            .arg(config::bulkhead_init().unwrap())
            .arg(&copy)
            .status();
        assert!(copied.unwrap().success());
        if let Self::WithCapability = self {
            permit_net_admin(&copy);
        }
        directory
    }
}

/// `setcap cap_net_admin+p`: version 2, the permitted and the inheritable
/// capabilities 0 to 31, then those from 32 on (`linux/capability.h`).
fn permit_net_admin(file: &Path) {
    let words = [0x0200_0000, 1_u32 << 12, 0, 0, 0];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    rustix::fs::setxattr(file, c"security.capability", &value, XattrFlags::empty())
        .expect("root may give capabilities to files, where the file system can keep them");
}

/// Who answered, and what was asked of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) who: String,
    /// The address that the client dialled, as its server was told.
    pub(crate) dialled: SocketAddr,
}

impl Answer {
    pub(crate) fn by(who: &str, dialled: &str) -> Self {
        Self {
            who: who.to_owned(),
            dialled: dialled.parse().unwrap(),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.who, self.dialled)
    }
}

/// Asks whoever is at the other end who that is. It can be asked again.
pub(crate) fn ask(mut stream: &TcpStream) -> Answer {
    stream.write_all(b"?").unwrap();
    let mut answer = String::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'\n' => break,
            byte => answer.push(char::from(byte)),
        }
    }
    let (who, dialled) = answer.split_once(' ').unwrap();
    Answer::by(who, dialled)
}

/// Opens a connection, from an address if one is given.
pub(crate) fn dial(
    network: &Network,
    user: User,
    from: Option<&str>,
    to: &str,
) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    network.within(user, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            let from: IpAddr = from.parse().unwrap();
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&to.into(), LIMIT)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    })
}

fn listen(network: &Network, address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    network.within(User::Root, || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified()).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.listen(64).unwrap();
        socket.into()
    })
}

/// A listener that tells whoever asks who it is.
struct Server {
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    fn start(who: &'static str, listener: TcpListener) -> Self {
        let accepted = listener.try_clone().unwrap();
        let accepting = thread::spawn(move || {
            while let Ok((stream, _)) = accepted.accept() {
                thread::spawn(move || answer(who, stream));
            }
        });
        Self {
            listener,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A thread that accepts is woken by this.
        let _ = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        let accepting = self.accepting.take().expect("it is taken here only");
        assert!(accepting.join().is_ok() || thread::panicking());
    }
}

/// Answers until the client closes.
fn answer(who: &str, mut stream: TcpStream) {
    let answer = Answer {
        who: who.to_owned(),
        dialled: dialled(&stream),
    };
    let mut question = [0];
    while stream.read_exact(&mut question).is_ok() {
        if writeln!(stream, "{answer}").is_err() {
            break;
        }
    }
}

/// Where a client was going: the original destination where the kernel changed
/// it, else the server's own address.
fn dialled(stream: &TcpStream) -> SocketAddr {
    let local = stream.local_addr().unwrap();
    let socket = SockRef::from(stream);
    let original = if local.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let address = original.ok().and_then(|address| address.as_socket());
    let address = address.unwrap_or(local);
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
