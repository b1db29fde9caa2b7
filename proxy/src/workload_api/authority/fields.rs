//! A block of fields (RFC 7541, 6), walked by the lengths that are in it.

/// The field, and its place in the static table (RFC 7541, A).
const AUTHORITY: &[u8] = b":authority";
const AUTHORITY_INDEX: u32 = 1;

/// The longest number that h2 reads is one byte and four more.
const MAX_SHIFT: u32 = 21;

/// What is in a socket's path, plain or with escapes, and in no host.
const NOT_IN_A_HOST: [u8; 2] = *b"%/";
/// What is in both.
const INSTEAD: u8 = b'-';

/// Follows one block of fields.
#[derive(Debug, Default)]
pub(super) struct Fields {
    state: State,
    /// Whether the field's name is `:authority`.
    is_authority: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A field begins.
    #[default]
    Start,
    /// A number goes on, of which the lowest bits are known.
    Number { of: Number, value: u32, shift: u32 },
    /// The name's length is next.
    NameLength,
    /// The value's length is next.
    ValueLength,
    /// The name, of which `left` bytes are missing.
    Name { left: u32, matched: Matched },
    /// The value, of which `left` bytes are missing.
    Value { left: u32, is_plain: bool },
}

/// What a number says.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// A whole field that was there before, or the table's size.
    Nothing,
    /// The name's place in the table, or 0 if it follows.
    NameIndex,
    NameLength {
        is_plain: bool,
    },
    ValueLength {
        is_plain: bool,
    },
}

/// How much of `:authority` the name is so far.
#[derive(Clone, Copy, Debug)]
enum Matched {
    Bytes(usize),
    Differs,
}

impl Fields {
    /// Whether no field is unfinished.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.state, State::Start)
    }

    /// Takes the next bytes of the block. False if they are not understood: nothing
    /// that follows is then.
    pub(super) fn rewrite(&mut self, bytes: &mut [u8]) -> bool {
        bytes.iter_mut().all(|byte| {
            let next = self.next(byte);
            self.state = next.unwrap_or_default();
            next.is_some()
        })
    }

    fn next(&mut self, byte: &mut u8) -> Option<State> {
        match self.state {
            State::Start => {
                let (of, bits) = representation(*byte);
                Some(self.number(of, *byte, bits))
            }
            State::Number { of, value, shift } => {
                let value = value + (u32::from(*byte & 0x7f) << shift);
                if *byte & 0x80 == 0 {
                    Some(self.known(of, value))
                } else if shift == MAX_SHIFT {
                    None
                } else {
                    let shift = shift + 7;
                    Some(State::Number { of, value, shift })
                }
            }
            State::NameLength => {
                let is_plain = *byte & 0x80 == 0;
                Some(self.number(Number::NameLength { is_plain }, *byte, 7))
            }
            State::ValueLength => {
                let is_plain = *byte & 0x80 == 0;
                Some(self.number(Number::ValueLength { is_plain }, *byte, 7))
            }
            State::Name { left, matched } => {
                let matched = matched.and(*byte);
                Some(self.name(left - 1, matched))
            }
            State::Value { left, is_plain } => {
                if self.is_authority && is_plain && NOT_IN_A_HOST.contains(byte) {
                    *byte = INSTEAD;
                }
                Some(value(left - 1, is_plain))
            }
        }
    }

    /// The state after the first byte of a number (RFC 7541, 5.1).
    fn number(&mut self, of: Number, byte: u8, bits: u32) -> State {
        let most = (1_u32 << bits) - 1;
        let value = u32::from(byte) & most;
        if value < most {
            self.known(of, value)
        } else {
            let shift = 0;
            State::Number { of, value, shift }
        }
    }

    /// The state after a number.
    fn known(&mut self, of: Number, number: u32) -> State {
        match of {
            Number::Nothing => State::Start,
            Number::NameIndex if number == 0 => State::NameLength,
            Number::NameIndex => {
                self.is_authority = number == AUTHORITY_INDEX;
                State::ValueLength
            }
            Number::NameLength { is_plain } => {
                let matched = if is_plain {
                    Matched::Bytes(0)
                } else {
                    Matched::Differs
                };
                self.name(number, matched)
            }
            Number::ValueLength { is_plain } => value(number, is_plain),
        }
    }

    fn name(&mut self, left: u32, matched: Matched) -> State {
        if left > 0 {
            return State::Name { left, matched };
        }
        self.is_authority = matches!(matched, Matched::Bytes(count) if count == AUTHORITY.len());
        State::ValueLength
    }
}

fn value(left: u32, is_plain: bool) -> State {
    if left > 0 {
        State::Value { left, is_plain }
    } else {
        State::Start
    }
}

/// What a field's first byte begins, and how many bits of a number it has
/// (RFC 7541, 6).
fn representation(byte: u8) -> (Number, u32) {
    match byte {
        0x80.. => (Number::Nothing, 7),
        0x40..0x80 => (Number::NameIndex, 6),
        0x20..0x40 => (Number::Nothing, 5),
        // Not to be remembered, or never.
        0x00..0x20 => (Number::NameIndex, 4),
    }
}

impl Matched {
    fn and(self, byte: u8) -> Self {
        match self {
            Self::Bytes(count) if AUTHORITY.get(count) == Some(&byte) => Self::Bytes(count + 1),
            _ => Self::Differs,
        }
    }
}
