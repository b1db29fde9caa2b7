//! Netlink attributes: a length, a type, and a value, padded to four bytes.
//! Lengths and types are in the host's byte order; nf_tables' numbers are in the
//! network's.

/// NLA_F_NESTED: the value is attributes.
const NESTED: u16 = 1 << 15;
/// NLA_F_NET_BYTEORDER.
const NET_BYTE_ORDER: u16 = 1 << 14;
/// The bytes before the value.
const HEADER: usize = 4;

/// Appends attributes to a message.
pub(super) struct Writer<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(HEADER + value.len()).expect("no value of ours nears 64 KiB");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text, with the NUL that ends it.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let length =
            u16::try_from(self.bytes.len() - start).expect("no value of ours nears 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Attributes that were received. Each accessor finds the first of its type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(&'a [u8]);

/// A message of the kernel that does not have the form that it should have: what
/// was missing or wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(super) String);

pub(super) fn malformed(what: impl Into<String>) -> Malformed {
    Malformed(what.into())
}

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Each attribute's type and value.
    pub(super) fn iter(self) -> impl Iterator<Item = Result<(u16, &'a [u8]), Malformed>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest.len() < HEADER {
                return None;
            }
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let kind = u16::from_ne_bytes([rest[2], rest[3]]) & !(NESTED | NET_BYTE_ORDER);
            if length < HEADER || length > rest.len() {
                rest = &[];
                return Some(Err(malformed("an attribute is longer than its message")));
            }
            let value = &rest[HEADER..length];
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(Ok((kind, value)))
        })
    }

    pub(super) fn find(self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        for attribute in self.iter() {
            let (found, value) = attribute?;
            if found == kind {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(super) fn get(self, kind: u16) -> Result<&'a [u8], Malformed> {
        self.find(kind)?
            .ok_or_else(|| malformed(format!("attribute {kind} is missing")))
    }

    pub(super) fn nested(self, kind: u16) -> Result<Self, Malformed> {
        self.get(kind).map(Self)
    }

    pub(super) fn u32(self, kind: u16) -> Result<u32, Malformed> {
        to_u32(self.get(kind)?)
    }

    pub(super) fn text(self, kind: u16) -> Result<&'a str, Malformed> {
        to_text(self.get(kind)?)
    }
}

pub(super) fn to_u32(value: &[u8]) -> Result<u32, Malformed> {
    <[u8; 4]>::try_from(value)
        .map(u32::from_be_bytes)
        .map_err(|_| malformed("a number does not have four bytes"))
}

/// A text, which may end with a NUL.
pub(super) fn to_text(value: &[u8]) -> Result<&str, Malformed> {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).map_err(|_| malformed("a text is not UTF-8"))
}
