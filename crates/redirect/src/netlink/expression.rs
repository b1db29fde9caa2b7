//! One expression, to and from netlink. The numbers are those of
//! `linux/netfilter/nf_tables.h`, each beside the expression that has it.

use super::attribute::{Attributes, Malformed, Writer, malformed, to_u32};
use super::constant::{NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE};
use crate::ruleset::{Expression, Header, Meta};

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// The register that an expression ends a rule by.
const REGISTER_VERDICT: u32 = 0;
/// The register that values pass through.
const REGISTER: u32 = 1;

mod bitwise {
    pub(super) const SREG: u16 = 1;
    pub(super) const DREG: u16 = 2;
    pub(super) const LEN: u16 = 3;
    pub(super) const MASK: u16 = 4;
    pub(super) const XOR: u16 = 5;
}
mod cmp {
    pub(super) const SREG: u16 = 1;
    pub(super) const OP: u16 = 2;
    pub(super) const DATA: u16 = 3;
    pub(super) const EQ: u32 = 0;
    pub(super) const NEQ: u32 = 1;
}
mod counter {
    pub(super) const BYTES: u16 = 1;
    pub(super) const PACKETS: u16 = 2;
}
mod fib {
    pub(super) const DREG: u16 = 1;
    pub(super) const RESULT: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const RESULT_ADDRESS_TYPE: u32 = 3;
    pub(super) const FLAG_DADDR: u32 = 2;
}
mod immediate {
    pub(super) const DREG: u16 = 1;
    pub(super) const DATA: u16 = 2;
}
mod lookup {
    pub(super) const SET: u16 = 1;
    pub(super) const SREG: u16 = 2;
    pub(super) const FLAGS: u16 = 5;
    pub(super) const FLAG_INVERTED: u32 = 1;
}
mod meta {
    pub(super) const DREG: u16 = 1;
    pub(super) const KEY: u16 = 2;
}
mod payload {
    pub(super) const DREG: u16 = 1;
    pub(super) const BASE: u16 = 2;
    pub(super) const OFFSET: u16 = 3;
    pub(super) const LEN: u16 = 4;
}
mod redir {
    pub(super) const REG_PROTO_MIN: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    /// NF_NAT_RANGE_PROTO_SPECIFIED: there is a port, not only an address.
    pub(super) const FLAG_PORT: u32 = 2;
}
mod verdict {
    // The kernel's numbers are negative.
    pub(super) const GOTO: u32 = -4_i32 as u32;
    pub(super) const RETURN: u32 = -5_i32 as u32;
}

const METAS: [(Meta, u32); 4] = [
    (Meta::OutputInterface, 5),
    (Meta::SocketUser, 10),
    (Meta::NetworkProtocol, 15),
    (Meta::TransportProtocol, 16),
];
const HEADERS: [(Header, u32); 2] = [(Header::Network, 1), (Header::Transport, 2)];

fn number_of<T: PartialEq + Copy>(table: &[(T, u32)], value: T) -> u32 {
    let row = table.iter().find(|(known, _)| *known == value);
    row.map(|(_, number)| *number)
        .expect("the table has a row for each value")
}

fn value_of<T: Copy>(table: &[(T, u32)], number: u32) -> Result<T, Malformed> {
    let row = table.iter().find(|(_, known)| *known == number);
    row.map(|(value, _)| *value).ok_or_else(|| {
        malformed(format!(
            "number {number} is not one that rules of ours have"
        ))
    })
}

/// What the kernel calls this kind of expression.
pub(super) fn name(expression: &Expression) -> &'static str {
    match expression {
        Expression::LoadMeta(_) => "meta",
        Expression::LoadPayload { .. } => "payload",
        Expression::LoadDestinationType => "fib",
        Expression::Mask(_) => "bitwise",
        Expression::Compare { .. } => "cmp",
        Expression::Lookup { .. } => "lookup",
        Expression::Count => "counter",
        Expression::Redirect => "redir",
        Expression::LoadValue(_) | Expression::Return | Expression::Goto(_) => "immediate",
    }
}

pub(super) fn encode(expression: &Expression, to: &mut Writer<'_>) {
    to.put_text(NFTA_EXPR_NAME, name(expression));
    to.nest(NFTA_EXPR_DATA, |to| encode_data(expression, to));
}

fn encode_data(expression: &Expression, to: &mut Writer<'_>) {
    match expression {
        Expression::LoadMeta(key) => {
            to.put_u32(meta::KEY, number_of(&METAS, *key));
            to.put_u32(meta::DREG, REGISTER);
        }
        Expression::LoadPayload {
            header,
            offset,
            length,
        } => {
            to.put_u32(payload::DREG, REGISTER);
            to.put_u32(payload::BASE, number_of(&HEADERS, *header));
            to.put_u32(payload::OFFSET, *offset);
            to.put_u32(payload::LEN, *length);
        }
        Expression::LoadDestinationType => {
            to.put_u32(fib::FLAGS, fib::FLAG_DADDR);
            to.put_u32(fib::RESULT, fib::RESULT_ADDRESS_TYPE);
            to.put_u32(fib::DREG, REGISTER);
        }
        Expression::LoadValue(value) => {
            to.put_u32(immediate::DREG, REGISTER);
            to.nest(immediate::DATA, |to| to.put(NFTA_DATA_VALUE, value));
        }
        Expression::Mask(mask) => {
            let length = u32::try_from(mask.len()).expect("at most 16");
            to.put_u32(bitwise::SREG, REGISTER);
            to.put_u32(bitwise::DREG, REGISTER);
            to.put_u32(bitwise::LEN, length);
            to.nest(bitwise::MASK, |to| to.put(NFTA_DATA_VALUE, mask));
            to.nest(bitwise::XOR, |to| {
                to.put(NFTA_DATA_VALUE, &vec![0; mask.len()])
            });
        }
        Expression::Compare { equal, value } => {
            to.put_u32(cmp::SREG, REGISTER);
            to.put_u32(cmp::OP, if *equal { cmp::EQ } else { cmp::NEQ });
            to.nest(cmp::DATA, |to| to.put(NFTA_DATA_VALUE, value));
        }
        Expression::Lookup { set, inverted } => {
            to.put_text(lookup::SET, set);
            to.put_u32(lookup::SREG, REGISTER);
            if *inverted {
                to.put_u32(lookup::FLAGS, lookup::FLAG_INVERTED);
            }
        }
        Expression::Count => {
            to.put(counter::BYTES, &0_u64.to_be_bytes());
            to.put(counter::PACKETS, &0_u64.to_be_bytes());
        }
        Expression::Redirect => {
            to.put_u32(redir::REG_PROTO_MIN, REGISTER);
            to.put_u32(redir::FLAGS, redir::FLAG_PORT);
        }
        Expression::Return => encode_verdict(verdict::RETURN, None, to),
        Expression::Goto(chain) => encode_verdict(verdict::GOTO, Some(chain), to),
    }
}

fn encode_verdict(code: u32, chain: Option<&str>, to: &mut Writer<'_>) {
    to.put_u32(immediate::DREG, REGISTER_VERDICT);
    to.nest(immediate::DATA, |to| {
        to.nest(NFTA_DATA_VERDICT, |to| {
            to.put_u32(NFTA_VERDICT_CODE, code);
            if let Some(chain) = chain {
                to.put_text(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}

/// Reads an expression, one that rules of ours have.
pub(super) fn decode(from: Attributes<'_>) -> Result<Expression, Malformed> {
    let name = from.text(NFTA_EXPR_NAME)?;
    let data = from.nested(NFTA_EXPR_DATA)?;
    match name {
        "meta" => {
            expect_register(data, meta::DREG)?;
            let key = value_of(&METAS, data.u32(meta::KEY)?)?;
            Ok(Expression::LoadMeta(key))
        }
        "payload" => {
            expect_register(data, payload::DREG)?;
            Ok(Expression::LoadPayload {
                header: value_of(&HEADERS, data.u32(payload::BASE)?)?,
                offset: data.u32(payload::OFFSET)?,
                length: data.u32(payload::LEN)?,
            })
        }
        "fib" => {
            expect_register(data, fib::DREG)?;
            expect(data, fib::FLAGS, fib::FLAG_DADDR)?;
            expect(data, fib::RESULT, fib::RESULT_ADDRESS_TYPE)?;
            Ok(Expression::LoadDestinationType)
        }
        "bitwise" => decode_mask(data),
        "cmp" => decode_compare(data),
        "lookup" => decode_lookup(data),
        "counter" => Ok(Expression::Count),
        "redir" => {
            expect_register(data, redir::REG_PROTO_MIN)?;
            expect(data, redir::FLAGS, redir::FLAG_PORT)?;
            Ok(Expression::Redirect)
        }
        "immediate" => decode_immediate(data),
        other => Err(malformed(format!(
            "there is an expression {other:?}, which no rule of ours has"
        ))),
    }
}

fn decode_mask(data: Attributes<'_>) -> Result<Expression, Malformed> {
    expect_register(data, bitwise::SREG)?;
    expect_register(data, bitwise::DREG)?;
    let mask = data.nested(bitwise::MASK)?.get(NFTA_DATA_VALUE)?;
    let xor = data.nested(bitwise::XOR)?.get(NFTA_DATA_VALUE)?;
    if xor.iter().any(|byte| *byte != 0) {
        return Err(malformed(
            "there is an exclusive or, which no rule of ours has",
        ));
    }
    Ok(Expression::Mask(mask.to_vec()))
}

fn decode_compare(data: Attributes<'_>) -> Result<Expression, Malformed> {
    expect_register(data, cmp::SREG)?;
    let equal = match data.u32(cmp::OP)? {
        cmp::EQ => true,
        cmp::NEQ => false,
        other => return Err(malformed(format!("there is a comparison {other}"))),
    };
    let value = data.nested(cmp::DATA)?.get(NFTA_DATA_VALUE)?.to_vec();
    Ok(Expression::Compare { equal, value })
}

fn decode_lookup(data: Attributes<'_>) -> Result<Expression, Malformed> {
    expect_register(data, lookup::SREG)?;
    let flags = data.find(lookup::FLAGS)?.map_or(Ok(0), to_u32)?;
    Ok(Expression::Lookup {
        set: data.text(lookup::SET)?.to_owned(),
        inverted: flags & lookup::FLAG_INVERTED != 0,
    })
}

fn decode_immediate(data: Attributes<'_>) -> Result<Expression, Malformed> {
    let value = data.nested(immediate::DATA)?;
    if data.u32(immediate::DREG)? == REGISTER {
        return Ok(Expression::LoadValue(value.get(NFTA_DATA_VALUE)?.to_vec()));
    }
    expect(data, immediate::DREG, REGISTER_VERDICT)?;
    let verdict = value.nested(NFTA_DATA_VERDICT)?;
    match verdict.u32(NFTA_VERDICT_CODE)? {
        verdict::RETURN => Ok(Expression::Return),
        verdict::GOTO => Ok(Expression::Goto(
            verdict.text(NFTA_VERDICT_CHAIN)?.to_owned(),
        )),
        other => Err(malformed(format!("there is a verdict {}", other as i32))),
    }
}

fn expect_register(data: Attributes<'_>, kind: u16) -> Result<(), Malformed> {
    expect(data, kind, REGISTER)
}

fn expect(data: Attributes<'_>, kind: u16, wanted: u32) -> Result<(), Malformed> {
    let found = data.u32(kind)?;
    if found == wanted {
        Ok(())
    } else {
        Err(malformed(format!(
            "attribute {kind} is {found} where rules of ours have {wanted}"
        )))
    }
}
