//! The table in the kernel: read, replaced and removed over netlink (RFC 3549),
//! in the language of `linux/netfilter/nf_tables.h`.
//!
//! - `batch` writes a transaction, `expression` the steps of its rules.
//! - `dump` reads what is there.
//! - `reply` splits what the kernel sends into messages.
//! - `error` says what a refusal means.
//!
//! The kernel has answered by the time that sending returns, so the socket never
//! waits: where nothing is there to read, nothing will come.

mod attribute;
mod batch;
mod constant;
mod dump;
mod error;
mod expression;
mod reply;

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use attribute::{Attributes, Malformed, Writer, malformed};
use batch::Batch;
use constant::{
    NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_TABLE,
    NFTA_TABLE_NAME, flag, message,
};
pub use error::Error;
use reply::{Answer, Reply};

use crate::ruleset::Ruleset;
use crate::table::NAME;

/// The kernel puts at most 32 KiB into one answer.
const BUFFER: usize = 64 * 1024;
/// How often a dump is begun anew, where somebody changed rules meanwhile.
const READS: usize = 5;
/// ENOENT: there is no such table.
const NOT_FOUND: i32 = 2;

/// The rules of the network namespace that it was opened in.
pub struct Netfilter {
    socket: Socket,
}

impl Netfilter {
    /// Opens a socket to nf_tables of this thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            // Errors then name the attribute, and do not repeat the message.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        open().map(|socket| Self { socket }).map_err(Error::Open)
    }

    /// The table as it is; nothing where there is none.
    pub fn read(&self) -> Result<Option<Ruleset>, Error> {
        for _ in 0..READS {
            match self.read_once() {
                Err(Error::Interrupted) => {}
                result => return result,
            }
        }
        Err(Error::Interrupted)
    }

    /// Puts a table in the place of the one that is there, if any, in one
    /// transaction: a packet meets all of the old rules or all of the new ones,
    /// and where anything fails, the old ones stay.
    pub fn replace(&self, ruleset: &Ruleset) -> Result<(), Error> {
        self.commit(&Batch::replace(ruleset))
    }

    /// Takes the table away, whether or not it is there.
    pub fn remove(&self) -> Result<(), Error> {
        self.commit(&Batch::remove())
    }

    fn commit(&self, batch: &Batch) -> Result<(), Error> {
        self.send(&batch.bytes)?;
        // The frame of the transaction has no answer of its own.
        let expected = batch.purposes.len() - 2;
        let mut accepted = 0;
        while let Some(received) = self.receive()? {
            for reply in reply::split(&received) {
                match reply?.read()? {
                    Answer::Refused(refusal) => {
                        let purpose = usize::try_from(refusal.sequence)
                            .ok()
                            .and_then(|sequence| batch.purposes.get(sequence));
                        return Err(Error::refused(&refusal, purpose));
                    }
                    Answer::Accepted => accepted += 1,
                    Answer::Done | Answer::Message(_) => {}
                }
            }
        }
        if accepted < expected {
            return Err(Error::NoAnswer);
        }
        Ok(())
    }

    fn read_once(&self) -> Result<Option<Ruleset>, Error> {
        let table = |to: &mut Writer<'_>| to.put_text(NFTA_TABLE_NAME, NAME);
        match self.ask(message::GETTABLE, flag::ACK, table, |_| Ok(())) {
            Err(Error::Refused { errno, .. }) if errno == NOT_FOUND => return Ok(None),
            result => result?,
        }
        let mut ruleset = Ruleset::default();
        self.ask(
            message::GETCHAIN,
            flag::DUMP,
            |_| {},
            |body| {
                ruleset.chains.extend(dump::chain(body)?);
                Ok(())
            },
        )?;
        let of_table = |to: &mut Writer<'_>| to.put_text(NFTA_SET_TABLE, NAME);
        self.ask(message::GETSET, flag::DUMP, of_table, |body| {
            ruleset.sets.extend(dump::set(body)?);
            Ok(())
        })?;
        for (name, set) in &mut ruleset.sets {
            let mut bounds = dump::Bounds::default();
            let of_set = |to: &mut Writer<'_>| {
                to.put_text(NFTA_SET_ELEM_LIST_TABLE, NAME);
                to.put_text(NFTA_SET_ELEM_LIST_SET, name);
            };
            self.ask(message::GETSETELEM, flag::DUMP, of_set, |body| {
                dump::elements(set.kind, body, &mut bounds)
            })?;
            set.ranges = dump::ranges(set.kind, &bounds)?;
        }
        let of_table = |to: &mut Writer<'_>| to.put_text(NFTA_RULE_TABLE, NAME);
        self.ask(message::GETRULE, flag::DUMP, of_table, |body| {
            let Some((chain, rule)) = dump::rule(body)? else {
                return Ok(());
            };
            let chain = ruleset.chains.get_mut(&chain);
            let chain = chain.ok_or_else(|| malformed("a rule is in a chain that is not there"))?;
            chain.rules.push(rule);
            Ok(())
        })?;
        Ok(Some(ruleset))
    }

    /// Asks for something, and reads every message of the answer.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer<'_>),
        mut read: impl FnMut(Attributes<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Error> {
        self.send(&batch::request(kind, flags, fill))?;
        while let Some(received) = self.receive()? {
            for reply in reply::split(&received) {
                let reply: Reply<'_> = reply?;
                if reply.flags & flag::DUMP_INTERRUPTED != 0 {
                    self.discard()?;
                    return Err(Error::Interrupted);
                }
                match reply.read()? {
                    Answer::Message(body) => read(body)?,
                    Answer::Refused(refusal) => return Err(Error::refused(&refusal, None)),
                    Answer::Accepted | Answer::Done => return Ok(()),
                }
            }
        }
        Err(Error::NoAnswer)
    }

    fn send(&self, message: &[u8]) -> Result<(), Error> {
        let sent = self.socket.send(message, 0).map_err(Error::Send)?;
        if sent == message.len() {
            Ok(())
        } else {
            Err(Error::Send(io::Error::other("the message was cut short")))
        }
    }

    /// What the kernel has answered, if there is more of it.
    fn receive(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut buffer = Vec::with_capacity(BUFFER);
        match self.socket.recv(&mut buffer, 0) {
            Ok(_) => Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Error::Receive(error)),
        }
    }

    /// Reads what is left of an answer that is of no use.
    fn discard(&self) -> Result<(), Error> {
        while self.receive()?.is_some() {}
        Ok(())
    }
}
