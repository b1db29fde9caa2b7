//! A person's hand on the rotation of a CA that keeps its keys in a directory:
//! the subcommands of `bulkhead-ca root`. In a cluster the CertificateAuthority
//! object is what people steer by.
//!
//! Nothing is done here but writing the order; the CA that runs on the directory
//! sees it within a second and takes the steps.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use crate::config::StoreLocation;
use crate::keyring;
use crate::rotation;
use crate::rotation::orders::{FileOrders, Order, OrderError};
use crate::rotation::slots::{Authority, Slots};
use crate::store::directory::Directory;
use crate::store::{Store, StoreError};

/// What a person wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wish {
    /// A new root, unless one is on its way already.
    Rotate,
    /// The root that signed before.
    Undo,
    /// Going on although workloads lack the new root: they are cut off.
    Force,
    /// To see how things are.
    Status,
}

/// Fulfils a wish, and says what came of it.
pub async fn steer(
    location: &StoreLocation,
    wish: Wish,
    now: SystemTime,
) -> Result<String, SteerError> {
    let StoreLocation::Directory(path) = location else {
        return Err(SteerError::NotADirectory(location.clone()));
    };
    let stored = Directory::open(path.clone())?.load().await?;
    let stored = stored.ok_or(SteerError::Empty)?;
    let slots = keyring::slots_of(&stored.files)?;
    let before = FileOrders::read(path)?.unwrap_or_default();
    let (order, said) = match wish {
        Wish::Status => return Ok(describe(&slots, before, now)),
        Wish::Rotate => rotate(&slots, before),
        Wish::Undo => undo(&slots, before)?,
        Wish::Force => force(&slots, before)?,
    };
    write(path, before, order)?;
    Ok(said)
}

/// Where the order is as it should be already, the file is left alone.
fn write(path: &Path, before: Order, order: Order) -> Result<(), SteerError> {
    if order == before {
        return Ok(());
    }
    Ok(FileOrders::write(path, order)?)
}

fn rotate(slots: &Slots, before: Order) -> (Order, String) {
    if let Some(target) = under_way(slots, before) {
        let said =
            format!("a rotation to root {target} is under way already: nothing was changed\n");
        return (before, said);
    }
    let generation = slots.next_root();
    let order = Order {
        root_generation: Some(generation),
        force_generation: None,
    };
    (order, format!("ordered a rotation to root {generation}\n"))
}

/// The way back is to whatever root signed before the one that is wanted now.
fn undo(slots: &Slots, before: Order) -> Result<(Order, String), SteerError> {
    let active = generation_of(slots);
    let wanted = under_way(slots, before).unwrap_or(active);
    let older = slots.trusted_roots().map(|root| root.authority.generation);
    let back = older
        .filter(|generation| *generation < wanted)
        .max()
        .ok_or(SteerError::NothingToUndo)?;
    let named = Some(back).filter(|back| before.root_generation != Some(*back));
    let order = Order {
        root_generation: named,
        force_generation: None,
    };
    let said = format!("ordered the way back to root {back}\n");
    Ok((order, said))
}

fn force(slots: &Slots, before: Order) -> Result<(Order, String), SteerError> {
    let target = under_way(slots, before).ok_or(SteerError::NothingUnderWay)?;
    let order = Order {
        force_generation: Some(target),
        ..before
    };
    let said = format!(
        "root {target} will sign although workloads lack it: those are cut off until they have it\n"
    );
    Ok((order, said))
}

/// The root that a rotation goes to, until nothing of the old one is left.
fn under_way(slots: &Slots, order: Order) -> Option<u64> {
    let active = generation_of(slots);
    let target = rotation::wanted_root(slots, order.root_generation);
    let is_alone = slots
        .roots
        .iter()
        .map(|root| &root.authority)
        .filter(|authority| !authority.is_gone())
        .all(|authority| authority.generation == active);
    (target != active || !is_alone).then_some(target)
}

fn generation_of(slots: &Slots) -> u64 {
    slots
        .active_root()
        .map_or(0, |root| root.authority.generation)
}

fn describe(slots: &Slots, order: Order, now: SystemTime) -> String {
    let mut text = String::new();
    let roots = slots
        .roots
        .iter()
        .rev()
        .map(|slot| ("root", &slot.authority));
    let intermediates = slots.intermediates.iter().rev();
    let intermediates = intermediates.map(|slot| ("intermediate", &slot.authority));
    let token_keys = slots.token_keys.iter().rev();
    let token_keys = token_keys.map(|slot| ("jwt", &slot.authority));
    line(
        &mut text,
        ["KIND", "GENERATION", "STATE", "EXPIRES", "FINGERPRINT"],
    );
    for (kind, authority) in roots.chain(intermediates).chain(token_keys) {
        let expires = expires(authority, now);
        let generation = authority.generation.to_string();
        let short = authority.fingerprint.get(..16).unwrap_or_default();
        line(
            &mut text,
            [kind, &generation, authority.state.as_str(), &expires, short],
        );
    }
    text.push('\n');
    text.push_str(&match under_way(slots, order) {
        Some(target) => format!("a rotation to root {target} is under way\n"),
        None => "no rotation is under way\n".to_owned(),
    });
    text
}

fn line(text: &mut String, [kind, generation, state, expires, fingerprint]: [&str; 5]) {
    writeln!(
        text,
        "{kind:<13} {generation:<11} {state:<10} {expires:<12} {fingerprint}"
    )
    .expect("writing into a String does not fail");
}

fn expires(authority: &Authority, now: SystemTime) -> String {
    match authority.not_after.duration_since(now) {
        Ok(left) => format!("in {} d", left.as_secs() / 86_400),
        Err(_) => "expired".to_owned(),
    }
}

/// Why a wish was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error(
        "{0} is not a directory: where the keys are in a Secret, use `bulkhead ca rotate-root`, or edit the CertificateAuthority"
    )]
    NotADirectory(StoreLocation),
    #[error("there is no CA in this directory yet: start one with it first")]
    Empty,
    #[error(
        "there is no older root to go back to: once the old root is retired, only another rotation leads away from the new one"
    )]
    NothingToUndo,
    #[error("no rotation is under way: there is nothing to force")]
    NothingUnderWay,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Order(#[from] OrderError),
}
