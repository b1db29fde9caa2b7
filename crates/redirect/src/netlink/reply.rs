//! What the kernel sends: messages one behind the other, each with a header.

use super::attribute::{Attributes, Malformed, malformed, to_text};
use super::constant::{
    NFNL_SUBSYS_NFTABLES, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSGERR_ATTR_MSG,
    NLMSGERR_ATTR_OFFS, flag,
};

/// The bytes of a netlink header, and of nfnetlink's behind it.
const HEADER: usize = 16;
const NFNETLINK_HEADER: usize = 4;

/// One message.
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// What a message says.
pub(super) enum Answer<'a> {
    Message(Attributes<'a>),
    Accepted,
    Refused(Refusal),
    /// Nothing more, or nothing at all.
    Done,
}

/// Why the kernel did not do something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) sequence: u32,
    pub(super) errno: i32,
    /// Its own words, where it has any.
    pub(super) text: Option<String>,
    /// Where in the message the attribute is that it did not like.
    pub(super) offset: Option<u32>,
}

/// The messages of what was received at once.
pub(super) fn split(received: &[u8]) -> impl Iterator<Item = Result<Reply<'_>, Malformed>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let reply = first(rest);
        rest = match &reply {
            Ok((_, length)) => rest.get(length.next_multiple_of(4)..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(reply.map(|(reply, _)| reply))
    })
}

fn first(bytes: &[u8]) -> Result<(Reply<'_>, usize), Malformed> {
    let short = || malformed("a message is shorter than its header says");
    let header = bytes.first_chunk::<HEADER>().ok_or_else(short)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
    let length = usize::try_from(length).map_err(|_| short())?;
    let reply = Reply {
        kind: u16::from_ne_bytes([header[4], header[5]]),
        flags: u16::from_ne_bytes([header[6], header[7]]),
        sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
        body: bytes.get(HEADER..length).ok_or_else(short)?,
    };
    Ok((reply, length))
}

impl<'a> Reply<'a> {
    pub(super) fn read(&self) -> Result<Answer<'a>, Malformed> {
        match self.kind {
            NLMSG_NOOP | NLMSG_DONE => Ok(Answer::Done),
            NLMSG_ERROR => self.read_error(),
            kind if kind >> 8 == NFNL_SUBSYS_NFTABLES => {
                let attributes = self.body.get(NFNETLINK_HEADER..);
                let attributes = attributes.ok_or_else(|| malformed("a message has no header"))?;
                Ok(Answer::Message(Attributes::new(attributes)))
            }
            kind => Err(malformed(format!("there is a message of type {kind}"))),
        }
    }

    /// An error is a number, the header of what was refused, and attributes.
    fn read_error(&self) -> Result<Answer<'a>, Malformed> {
        let number = self.body.first_chunk::<4>();
        let number = number.ok_or_else(|| malformed("an error has no number"))?;
        let errno = i32::from_ne_bytes(*number).wrapping_neg();
        if errno == 0 {
            return Ok(Answer::Accepted);
        }
        let mut refusal = Refusal {
            sequence: self.sequence,
            errno,
            text: None,
            offset: None,
        };
        if self.flags & flag::ACK_ATTRIBUTES != 0 {
            let explained = Attributes::new(self.body.get(4 + HEADER..).unwrap_or_default());
            if let Some(text) = explained.find(NLMSGERR_ATTR_MSG)? {
                refusal.text = Some(to_text(text)?.to_owned());
            }
            // The one number that is in the host's byte order.
            if let Some(Ok(offset)) = explained.find(NLMSGERR_ATTR_OFFS)?.map(TryInto::try_into) {
                refusal.offset = Some(u32::from_ne_bytes(offset));
            }
        }
        Ok(Answer::Refused(refusal))
    }
}
