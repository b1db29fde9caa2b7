//! The messages of one transaction: the kernel does all of them, or none.

use super::attribute::Writer;
use super::constant::{
    HOOK_OUTPUT, HOOK_PREROUTING, NF_ACCEPT, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END,
    NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NFT_SET_ELEM_INTERVAL_END, NFT_SET_INTERVAL,
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE,
    NFTA_DATA_VALUE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_LIST_ELEM, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_FLAGS, NFTA_SET_ID, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE,
    NFTA_SET_NAME, NFTA_SET_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, PRIORITY_DSTNAT,
    USERDATA_COMMENT, flag, message,
};
use super::expression;
use crate::ruleset::{ChainContents, Program, Ruleset, SetContents};
use crate::table::{Hook, Kind, NAME};

/// Messages, and what each of them is for.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// By sequence number, from 0.
    pub(super) purposes: Vec<Purpose>,
}

/// What a message is for, to say so where the kernel refuses it.
pub(super) struct Purpose {
    /// Where in the batch the message starts.
    start: usize,
    pub(super) what: String,
    /// Where each expression of a rule ends, and its name.
    expressions: Vec<(usize, &'static str)>,
}

impl Purpose {
    /// The expression that is at this offset of the message.
    pub(super) fn expression_at(&self, offset: u32) -> Option<&'static str> {
        let position = self.start + usize::try_from(offset).ok()?;
        let found = self.expressions.iter().find(|(end, _)| position < *end);
        found.map(|(_, name)| *name)
    }
}

impl Batch {
    /// Takes the table away, whether or not it is there, and puts this one in
    /// its place.
    pub(super) fn replace(ruleset: &Ruleset) -> Self {
        let mut batch = Self::begin();
        batch.remove_table();
        batch.add_table();
        for (id, (name, set)) in (1..).zip(&ruleset.sets) {
            batch.add_set(id, name, set);
        }
        // All chains before the rules, which may go to any of them.
        for (name, chain) in &ruleset.chains {
            batch.add_chain(name, chain);
        }
        for (name, chain) in &ruleset.chains {
            for (number, rule) in (1..).zip(&chain.rules) {
                batch.add_rule(name, number, rule);
            }
        }
        batch.end()
    }

    fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            purposes: Vec::new(),
        };
        let subsystem = NFNL_SUBSYS_NFTABLES;
        batch.push("beginning the transaction", |bytes| {
            start(bytes, NFNL_MSG_BATCH_BEGIN, 0, 0, subsystem);
        });
        batch
    }

    fn end(mut self) -> Self {
        let subsystem = NFNL_SUBSYS_NFTABLES;
        self.push("ending the transaction", |bytes| {
            start(bytes, NFNL_MSG_BATCH_END, 0, 0, subsystem);
        });
        self
    }

    /// The kernel refuses to remove what is not there: so the table is made, if
    /// need be, to be removed.
    fn remove_table(&mut self) {
        self.add_table();
        let table = |to: &mut Writer<'_>| to.put_text(NFTA_TABLE_NAME, NAME);
        self.put("removing the table", message::DELTABLE, 0, table);
    }

    fn add_table(&mut self) {
        self.put("adding the table", message::NEWTABLE, flag::CREATE, |to| {
            to.put_text(NFTA_TABLE_NAME, NAME);
            to.put_u32(NFTA_TABLE_FLAGS, 0);
        });
    }

    fn add_set(&mut self, id: u32, name: &str, set: &SetContents) {
        let length = u32::try_from(set.kind.length()).expect("at most 16");
        let what = format!("adding the set {name}");
        self.put(&what, message::NEWSET, flag::CREATE, |to| {
            to.put_text(NFTA_SET_TABLE, NAME);
            to.put_text(NFTA_SET_NAME, name);
            to.put_u32(NFTA_SET_FLAGS, NFT_SET_INTERVAL);
            to.put_u32(NFTA_SET_KEY_TYPE, key_type(set.kind));
            to.put_u32(NFTA_SET_KEY_LEN, length);
            to.put_u32(NFTA_SET_ID, id);
        });
        if set.ranges.is_empty() {
            return;
        }
        let what = format!("filling the set {name}");
        self.put(&what, message::NEWSETELEM, flag::CREATE, |to| {
            to.put_text(NFTA_SET_ELEM_LIST_TABLE, NAME);
            to.put_text(NFTA_SET_ELEM_LIST_SET, name);
            to.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |to| put_elements(set, to));
        });
    }

    fn add_chain(&mut self, name: &str, chain: &ChainContents) {
        let what = format!("adding the chain {name}");
        self.put(&what, message::NEWCHAIN, flag::CREATE, |to| {
            to.put_text(NFTA_CHAIN_TABLE, NAME);
            to.put_text(NFTA_CHAIN_NAME, name);
            if let Some(hook) = chain.hook {
                to.nest(NFTA_CHAIN_HOOK, |to| {
                    to.put_u32(NFTA_HOOK_HOOKNUM, hook_number(hook));
                    to.put(NFTA_HOOK_PRIORITY, &PRIORITY_DSTNAT.to_be_bytes());
                });
                to.put_u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
                to.put_text(NFTA_CHAIN_TYPE, "nat");
            }
        });
    }

    fn add_rule(&mut self, chain: &str, number: usize, rule: &Program) {
        let mut expressions = Vec::new();
        let what = format!("adding rule {number} of chain {chain} ({})", rule.comment);
        let flags = flag::CREATE | flag::APPEND;
        self.put(&what, message::NEWRULE, flags, |to| {
            to.put_text(NFTA_RULE_TABLE, NAME);
            to.put_text(NFTA_RULE_CHAIN, chain);
            to.nest(NFTA_RULE_EXPRESSIONS, |to| {
                for expression in &rule.expressions {
                    to.nest(NFTA_LIST_ELEM, |to| expression::encode(expression, to));
                    expressions.push((to.bytes.len(), expression::name(expression)));
                }
            });
            to.put(NFTA_RULE_USERDATA, &comment(&rule.comment));
        });
        if let Some(purpose) = self.purposes.last_mut() {
            purpose.expressions = expressions;
        }
    }

    fn put(&mut self, what: &str, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        self.push(what, |bytes| {
            start(bytes, kind, flags | flag::ACK, NFPROTO_INET, 0);
            fill(&mut Writer { bytes });
        });
    }

    fn push(&mut self, what: &str, fill: impl FnOnce(&mut Vec<u8>)) {
        let from = self.bytes.len();
        fill(&mut self.bytes);
        let sequence = u32::try_from(self.purposes.len()).expect("a few dozen messages");
        finish(&mut self.bytes[from..], sequence);
        self.purposes.push(Purpose {
            start: from,
            what: what.to_owned(),
            expressions: Vec::new(),
        });
    }
}

/// A message that asks for something, outside a transaction.
pub(super) fn request(kind: u16, flags: u16, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    start(&mut bytes, kind, flags, NFPROTO_INET, 0);
    fill(&mut Writer { bytes: &mut bytes });
    finish(&mut bytes, 0);
    bytes
}

/// The header of a netlink message (RFC 3549, 2.2), its length and number to be
/// filled in, and the header of nfnetlink.
fn start(bytes: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16) {
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | flag::REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
}

fn finish(message: &mut [u8], sequence: u32) {
    let length = u32::try_from(message.len()).expect("far less than 4 GiB");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// nft's number of the type, by which it knows how to show values.
pub(super) fn key_type(kind: Kind) -> u32 {
    match kind {
        Kind::Ipv4 => 7,
        Kind::Ipv6 => 8,
        Kind::Port => 13,
    }
}

pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => HOOK_PREROUTING,
        Hook::Output => HOOK_OUTPUT,
    }
}

/// A range is its first value, and the value past its last one with a flag; there
/// is none past the largest. A set that does not start at zero begins with an
/// end, as those that nft makes.
fn put_elements(set: &SetContents, to: &mut Writer<'_>) {
    let mut put = |value: u128, is_end: bool| {
        to.nest(NFTA_LIST_ELEM, |to| {
            if is_end {
                to.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            }
            to.nest(NFTA_SET_ELEM_KEY, |to| {
                let bytes = value.to_be_bytes();
                to.put(NFTA_DATA_VALUE, &bytes[16 - set.kind.length()..]);
            });
        });
    };
    if set.ranges.first().is_some_and(|(first, _)| *first > 0) {
        put(0, true);
    }
    for (first, last) in &set.ranges {
        put(*first, false);
        if *last < set.kind.last() {
            put(last + 1, true);
        }
    }
}

/// A comment as nft keeps it: type, length, and the text with a NUL.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("comments are literals of a few words");
    [&[USERDATA_COMMENT, length], text.as_bytes(), &[0]].concat()
}
