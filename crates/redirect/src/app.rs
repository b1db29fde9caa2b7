//! What `bulkhead-init` does.

use bulkhead_core::redirect::RedirectConfig;

use crate::netlink::Netfilter;
use crate::ruleset::Ruleset;
use crate::table::Table;
use crate::{capability, check, netlink};

/// What was done.
#[derive(Debug)]
pub struct Installed {
    /// The rules that hold now.
    pub table: Table,
    /// Whether there was anything to change.
    pub changed: bool,
    pub tried: Vec<check::Outcome>,
}

/// Why the pod's traffic is not redirected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Capability(#[from] capability::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(
        "the kernel took the rules, but what it has now is not what was asked for: does another \
         program change the table `inet bulkhead` of this pod (`nft list ruleset`)?"
    )]
    NotWhatWasAsked,
    #[error(transparent)]
    Check(#[from] check::Error),
}

/// Sets the rules of this network namespace, where they are not set already, and
/// checks them.
pub fn install(config: &RedirectConfig) -> Result<Installed, Error> {
    capability::raise_net_admin()?;
    let table = Table::of(config);
    let changed = set(&Netfilter::open()?, &table.compile())?;
    let tried = check::try_out(config)?;
    Ok(Installed {
        table,
        changed,
        tried,
    })
}

/// Puts the rules in place, and says whether there was anything to change. The
/// proof is what the kernel has afterwards.
fn set(netfilter: &Netfilter, wanted: &Ruleset) -> Result<bool, Error> {
    let is_wanted = |found: &Option<Ruleset>| found.as_ref() == Some(wanted);
    match netfilter.read() {
        Ok(found) if is_wanted(&found) => return Ok(false),
        // Whatever is there has our name, and is replaced.
        Ok(_) | Err(netlink::Error::Foreign(_)) => {}
        Err(error) => return Err(error.into()),
    }
    netfilter.replace(wanted)?;
    if is_wanted(&netfilter.read()?) {
        Ok(true)
    } else {
        Err(Error::NotWhatWasAsked)
    }
}

/// Takes every rule of ours away, and says whether there were any. Connections
/// that are open stay as they are, those through the proxy included.
pub fn remove() -> Result<bool, Error> {
    capability::raise_net_admin()?;
    let netfilter = Netfilter::open()?;
    if matches!(netfilter.read(), Ok(None)) {
        return Ok(false);
    }
    set(&netfilter, &Table::without_rules().compile())
}
