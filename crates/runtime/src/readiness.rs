//! Named conditions that must hold before work is sent to a process.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The conditions of one process. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<RwLock<BTreeMap<&'static str, bool>>>,
}

impl Readiness {
    /// Adds a condition, which does not hold until it is set.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            readiness: self.clone(),
        };
        condition.set(false);
        condition
    }

    /// The names of the conditions that do not hold; none means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let conditions = self
            .conditions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        conditions
            .iter()
            .filter(|(_, holds)| !**holds)
            .map(|(name, _)| *name)
            .collect()
    }
}

/// One condition, held by whoever knows about it.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Condition {
    pub fn set(&self, holds: bool) {
        self.readiness
            .conditions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.name, holds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_condition_holds() {
        let readiness = Readiness::default();
        let certificate = readiness.condition("certificate");
        let listeners = readiness.condition("listeners");
        certificate.set(true);
        assert_eq!(readiness.missing(), ["listeners"]);
        listeners.set(true);
        assert!(readiness.missing().is_empty());
        certificate.set(false);
        assert_eq!(readiness.missing(), ["certificate"]);
    }
}
