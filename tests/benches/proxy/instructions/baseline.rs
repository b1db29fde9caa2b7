//! The counts that are kept in the repository, and what is too much beside them.

use std::collections::BTreeMap;
use std::fs::{read_to_string, write};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::callgrind::{Executed, Functions};

/// By how much a count may grow.
const TOLERANCE: f64 = 0.05;
/// Functions with a smaller share than this are kept only in the sum.
const WORTH_NAMING: f64 = 0.003;
/// How many functions are named when a count has grown.
const NAMED: usize = 8;

/// Counts of one build.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Baseline {
    /// What compiled it: another compiler makes other instructions of the same code.
    pub(super) compiler: String,
    /// By what is counted.
    pub(super) counts: BTreeMap<String, Count>,
}

/// Instructions for one piece of work.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Count {
    pub(super) instructions: u64,
    /// Calls to the allocator.
    pub(super) allocations: u64,
    functions: BTreeMap<String, u64>,
    /// Who made the calls to the allocator.
    allocate: BTreeMap<String, u64>,
}

impl Count {
    pub(super) fn new(functions: &Functions) -> Self {
        let of = |part: fn(&Executed) -> f64, least: f64| {
            let parts = functions
                .iter()
                .map(|(name, executed)| (name, part(executed)));
            let large = parts.filter(|(_, count)| *count > least);
            large
                .map(|(name, count)| (name.clone(), count.round() as u64))
                .collect()
        };
        let sum: f64 = functions
            .values()
            .map(|executed| executed.instructions)
            .sum();
        let allocations: f64 = functions
            .values()
            .map(|executed| executed.allocations)
            .sum();
        Self {
            instructions: sum.round() as u64,
            allocations: allocations.round() as u64,
            functions: of(|executed| executed.instructions, sum * WORTH_NAMING),
            allocate: of(|executed| executed.allocations, 0.5),
        }
    }

    /// What is wrong where this is more than before, with the functions that grew.
    pub(super) fn judge(&self, what: &str, before: &Self) -> Option<String> {
        let growth = self.instructions as f64 / before.instructions as f64 - 1.0;
        let mut faults = Vec::new();
        if growth > TOLERANCE {
            faults.push(format!(
                "{what}: {} instructions, which is {:.1} % more than {}; what grew most:{}",
                self.instructions,
                growth * 100.0,
                before.instructions,
                grown(&self.functions, &before.functions)
            ));
        }
        if self.allocations as f64 > before.allocations as f64 * (1.0 + TOLERANCE) {
            faults.push(format!(
                "{what}: {} allocations, where there were {}; who made more:{}",
                self.allocations,
                before.allocations,
                grown(&self.allocate, &before.allocate)
            ));
        }
        (!faults.is_empty()).then(|| faults.join("\n"))
    }

    /// The same with `share` of the sum more in its largest function, whose name
    /// is the second.
    fn with_more(&self, share: f64) -> (Self, String) {
        let mut grown = self.clone();
        let more = (self.instructions as f64 * share) as u64;
        let largest = grown.functions.iter_mut().max_by_key(|(_, count)| **count);
        let (name, count) = largest.expect("something was executed");
        *count += more;
        let name = name.clone();
        grown.instructions += more;
        (grown, name)
    }
}

/// Names with what they have more than before, the largest first.
fn grown(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> String {
    let was = |name: &String| before.get(name).copied().unwrap_or_default();
    let more = now
        .iter()
        .map(|(name, count)| (count.saturating_sub(was(name)), name));
    let mut more: Vec<_> = more.filter(|(more, _)| *more > 0).collect();
    more.sort_unstable_by(|one, other| other.cmp(one));
    let named = more.iter().take(NAMED);
    named
        .map(|(more, name)| format!("\n    +{more} {name} (was {})", was(name)))
        .collect()
}

/// Shows that what is too much is found, and named, and that less is not.
pub(super) fn check_judgement(count: &Count) -> Result<()> {
    let (little, _) = count.with_more(TOLERANCE * 0.9);
    ensure!(
        little.judge("a little", count).is_none(),
        "a growth within what is tolerated was refused"
    );
    let (much, function) = count.with_more(TOLERANCE * 1.1);
    let said = much
        .judge("much", count)
        .context("a growth beyond what is tolerated passed")?;
    let named = said.lines().nth(1).unwrap_or_default();
    ensure!(
        named.contains(&function),
        "the function that grew was not named first: {said}"
    );
    Ok(())
}

impl Baseline {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}
