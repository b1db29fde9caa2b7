//! What the kernel says is there.

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{Attributes, Malformed, malformed, to_text, to_u32};
use super::batch::{hook_number, key_type};
use super::constant::{
    NF_ACCEPT, NFT_SET_ELEM_INTERVAL_END, NFT_SET_INTERVAL, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
    NFTA_LIST_ELEM, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA,
    NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_NAME, NFTA_TABLE_NAME, PRIORITY_DSTNAT,
    USERDATA_COMMENT, message,
};
use super::expression;
use crate::ruleset::{ChainContents, Program, Ruleset, SetContents};
use crate::table::{Hook, Kind, NAME};

/// A table as far as it was read. Chains come before their rules, and sets before
/// their elements.
#[derive(Debug, Default)]
pub(super) struct Dump {
    ruleset: Ruleset,
    bounds: BTreeMap<String, Bounds>,
}

/// Where the ranges of a set start and end, as its elements say it: a value, and
/// whether it is the first past a range.
type Bounds = BTreeSet<(u128, Bound)>;

/// An end comes before a start at the same value.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Bound {
    End,
    Start,
}

impl Dump {
    /// Reads one message of a dump. Those of other tables are passed over.
    pub(super) fn add(&mut self, kind: u16, body: Attributes<'_>) -> Result<(), Malformed> {
        // The name of the table is the first attribute of each.
        if body.text(NFTA_TABLE_NAME)? != NAME {
            return Ok(());
        }
        match kind {
            message::NEWTABLE => {}
            message::NEWCHAIN => {
                let (name, chain) = read_chain(body)?;
                self.ruleset.chains.insert(name, chain);
            }
            message::NEWSET => {
                let (name, set) = read_set(body)?;
                self.ruleset.sets.insert(name, set);
            }
            message::NEWSETELEM => {
                let name = body.text(NFTA_SET_ELEM_LIST_SET)?;
                let set = self.ruleset.sets.get(name);
                let set =
                    set.ok_or_else(|| malformed("elements are in a set that is not there"))?;
                let bounds = self.bounds.entry(name.to_owned()).or_default();
                read_elements(set.kind, body, bounds)?;
            }
            message::NEWRULE => {
                let chain = body.text(NFTA_RULE_CHAIN)?;
                let chain = self.ruleset.chains.get_mut(chain);
                let chain =
                    chain.ok_or_else(|| malformed("a rule is in a chain that is not there"))?;
                chain.rules.push(read_rule(body)?);
            }
            other => return Err(malformed(format!("there is a message of type {other:#x}"))),
        }
        Ok(())
    }

    /// The names of the sets that were read.
    pub(super) fn sets(&self) -> Vec<String> {
        self.ruleset.sets.keys().cloned().collect()
    }

    pub(super) fn finish(mut self) -> Result<Ruleset, Malformed> {
        for (name, bounds) in &self.bounds {
            if let Some(set) = self.ruleset.sets.get_mut(name) {
                set.ranges = ranges(set.kind, bounds)?;
            }
        }
        Ok(self.ruleset)
    }
}

/// Reads a chain, without its rules.
fn read_chain(body: Attributes<'_>) -> Result<(String, ChainContents), Malformed> {
    let name = body.text(NFTA_CHAIN_NAME)?.to_owned();
    let hook = match body.find(NFTA_CHAIN_HOOK)? {
        Some(hook) => Some(read_hook(body, Attributes::new(hook))?),
        None => None,
    };
    let rules = Vec::new();
    Ok((name, ChainContents { hook, rules }))
}

fn read_hook(chain: Attributes<'_>, hook: Attributes<'_>) -> Result<Hook, Malformed> {
    let number = hook.u32(NFTA_HOOK_HOOKNUM)?;
    // Its four bytes are a signed number.
    let priority = hook.u32(NFTA_HOOK_PRIORITY)? as i32;
    let kind = chain.text(NFTA_CHAIN_TYPE)?;
    let policy = chain.u32(NFTA_CHAIN_POLICY)?;
    if kind != "nat" || priority != PRIORITY_DSTNAT || policy != NF_ACCEPT {
        return Err(malformed(format!(
            "a chain has type {kind}, priority {priority} and policy {policy}, unlike ours"
        )));
    }
    [Hook::Prerouting, Hook::Output]
        .into_iter()
        .find(|hook| hook_number(*hook) == number)
        .ok_or_else(|| {
            malformed(format!(
                "a chain is at hook {number}, where none of ours is"
            ))
        })
}

/// Reads a set, without its elements.
fn read_set(body: Attributes<'_>) -> Result<(String, SetContents), Malformed> {
    let flags = body.u32(NFTA_SET_FLAGS)?;
    let number = body.u32(NFTA_SET_KEY_TYPE)?;
    let kind = [Kind::Port, Kind::Ipv4, Kind::Ipv6]
        .into_iter()
        .find(|kind| key_type(*kind) == number && flags == NFT_SET_INTERVAL)
        .ok_or_else(|| {
            malformed(format!(
                "a set has type {number} and flags {flags}, unlike ours"
            ))
        })?;
    let ranges = Vec::new();
    let name = body.text(NFTA_SET_NAME)?.to_owned();
    Ok((name, SetContents { kind, ranges }))
}

/// Reads some of a set's elements.
fn read_elements(kind: Kind, body: Attributes<'_>, bounds: &mut Bounds) -> Result<(), Malformed> {
    let Some(list) = body.find(NFTA_SET_ELEM_LIST_ELEMENTS)? else {
        return Ok(());
    };
    for element in Attributes::new(list).iter() {
        let (NFTA_LIST_ELEM, element) = element? else {
            continue;
        };
        let element = Attributes::new(element);
        let flags = element.find(NFTA_SET_ELEM_FLAGS)?.map_or(Ok(0), to_u32)?;
        let value = element.nested(NFTA_SET_ELEM_KEY)?.get(NFTA_DATA_VALUE)?;
        let bound = if flags & NFT_SET_ELEM_INTERVAL_END == 0 {
            Bound::Start
        } else {
            Bound::End
        };
        bounds.insert((read_value(kind, value)?, bound));
    }
    Ok(())
}

fn read_value(kind: Kind, value: &[u8]) -> Result<u128, Malformed> {
    if value.len() != kind.length() {
        return Err(malformed(format!(
            "an element of {} bytes is in a set of {}",
            value.len(),
            kind.length()
        )));
    }
    let read = |number, byte: &u8| number << 8 | u128::from(*byte);
    Ok(value.iter().fold(0, read))
}

/// The ranges between the bounds.
fn ranges(kind: Kind, bounds: &Bounds) -> Result<Vec<(u128, u128)>, Malformed> {
    let mut ranges = Vec::new();
    let mut open = None;
    for (value, bound) in bounds {
        match (bound, open) {
            (Bound::Start, None) => open = Some(*value),
            (Bound::End, Some(first)) => {
                ranges.push((first, value - 1));
                open = None;
            }
            // The end that a set begins with, where it does not start at zero.
            (Bound::End, None) if *value == 0 => {}
            _ => return Err(malformed("the ranges of a set overlap")),
        }
    }
    ranges.extend(open.map(|first| (first, kind.last())));
    Ok(ranges)
}

fn read_rule(body: Attributes<'_>) -> Result<Program, Malformed> {
    let mut expressions = Vec::new();
    if let Some(list) = body.find(NFTA_RULE_EXPRESSIONS)? {
        for item in Attributes::new(list).iter() {
            let (_, item) = item?;
            expressions.push(expression::decode(Attributes::new(item))?);
        }
    }
    let comment = match body.find(NFTA_RULE_USERDATA)? {
        Some([USERDATA_COMMENT, _, text @ ..]) => to_text(text)?.to_owned(),
        _ => String::new(),
    };
    Ok(Program {
        expressions,
        comment,
    })
}
