//! The table in the kernel: read and replaced over netlink (RFC 3549),
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

pub use attribute::Malformed;
use attribute::{Attributes, Writer};
use batch::Batch;
use constant::{NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_NAME, flag, message};
use dump::Dump;
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

/// The table that messages of a dump describe, as the kernel sends them.
pub fn decode(messages: &[u8]) -> Result<Ruleset, Malformed> {
    let mut dump = Dump::default();
    for reply in reply::split(messages) {
        let reply = reply?;
        if let Answer::Message(body) = reply.read()? {
            dump.add(reply.kind, body)?;
        }
    }
    dump.finish()
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
        match self.ask(message::GETTABLE, flag::ACK, table, |_, _| Ok(())) {
            Err(Error::Refused { errno, .. }) if errno == NOT_FOUND => return Ok(None),
            result => result?,
        }
        let mut dump = Dump::default();
        let of_table = |to: &mut Writer<'_>| to.put_text(NFTA_TABLE_NAME, NAME);
        for kind in [message::GETCHAIN, message::GETSET, message::GETRULE] {
            self.ask(kind, flag::DUMP, of_table, |kind, body| {
                dump.add(kind, body)
            })?;
        }
        for name in dump.sets() {
            let of_set = |to: &mut Writer<'_>| {
                to.put_text(NFTA_SET_ELEM_LIST_TABLE, NAME);
                to.put_text(NFTA_SET_ELEM_LIST_SET, &name);
            };
            self.ask(message::GETSETELEM, flag::DUMP, of_set, |kind, body| {
                dump.add(kind, body)
            })?;
        }
        Ok(Some(dump.finish()?))
    }

    /// Asks for something, and reads every message of the answer.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer<'_>),
        mut read: impl FnMut(u16, Attributes<'_>) -> Result<(), Malformed>,
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
                    Answer::Message(body) => read(reply.kind, body)?,
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

#[cfg(test)]
mod tests;
