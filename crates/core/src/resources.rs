//! The CPU, memory and storage that the sidecar asks for, merged field by field:
//! the pod's word over its namespace's over the installation's.
//!
//! Each value remembers who said it. Kubernetes refuses a container whose
//! request is above its limit; where that comes from two levels, the nearer one
//! is what somebody meant, and the farther one gives way.

use crate::quantity::Quantity;

/// Who said something, the farthest from the pod first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub enum Level {
    /// The installation's settings.
    #[default]
    Installation,
    /// An annotation of the namespace.
    Namespace,
    /// An annotation of the pod.
    Pod,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installation => "installation",
            Self::Namespace => "namespace",
            Self::Pod => "pod",
        }
    }
}

/// A quantity that may be left out of the pod spec, and who decided that.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Amount {
    pub quantity: Option<Quantity>,
    pub level: Level,
}

impl From<Quantity> for Amount {
    /// As the installation's settings say it.
    fn from(quantity: Quantity) -> Self {
        Self {
            quantity: Some(quantity),
            level: Level::Installation,
        }
    }
}

/// What is asked for of one resource.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bounds {
    pub request: Amount,
    pub limit: Amount,
}

impl Bounds {
    /// Makes the request fit under the limit. Where both were said at the same
    /// level there is nobody to give way, and that is an error.
    fn reconcile(&mut self, resource: &'static str) -> Result<(), BoundsError> {
        let (Some(request), Some(limit)) = (&self.request.quantity, &self.limit.quantity) else {
            return Ok(());
        };
        if request <= limit {
            return Ok(());
        }
        match self.request.level.cmp(&self.limit.level) {
            std::cmp::Ordering::Less => self.request.quantity = Some(limit.clone()),
            std::cmp::Ordering::Greater => self.limit.quantity = Some(request.clone()),
            std::cmp::Ordering::Equal => {
                return Err(BoundsError {
                    resource,
                    request: request.to_string(),
                    limit: limit.to_string(),
                    level: self.limit.level.as_str(),
                });
            }
        }
        Ok(())
    }
}

/// What the sidecar asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resources {
    pub cpu: Bounds,
    pub memory: Bounds,
    pub ephemeral_storage: Bounds,
}

impl Default for Resources {
    /// Little is asked for, because every pod of the mesh pays it. There is no
    /// CPU limit: throttling a proxy adds its pause to every request of the
    /// pod. The memory limit is a backstop only: a proxy needs 5 to 12 MiB, and
    /// some 50 MiB for 10,000 open connections, and passing the limit costs
    /// every connection of the pod at once, so it stands well above both.
    fn default() -> Self {
        let quantity = |text: &str| text.parse::<Quantity>().expect("a literal of the tests");
        Self {
            cpu: Bounds {
                request: quantity("10m").into(),
                limit: Amount::default(),
            },
            memory: Bounds {
                request: quantity("32Mi").into(),
                limit: quantity("256Mi").into(),
            },
            ephemeral_storage: Bounds::default(),
        }
    }
}

impl Resources {
    /// The resources by their names in a pod spec.
    pub fn by_name(&self) -> [(&'static str, &Bounds); 3] {
        [
            ("cpu", &self.cpu),
            ("memory", &self.memory),
            ("ephemeral-storage", &self.ephemeral_storage),
        ]
    }

    /// Makes every request fit under its limit.
    pub fn reconcile(&mut self) -> Result<(), BoundsError> {
        self.cpu.reconcile("cpu")?;
        self.memory.reconcile("memory")?;
        self.ephemeral_storage.reconcile("ephemeral-storage")
    }
}

/// A request above its limit.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the sidecar's {resource} request of {request} is above its {resource} limit of {limit}, and \
     both are set on the same {level}: lower the one or raise the other"
)]
pub struct BoundsError {
    resource: &'static str,
    request: String,
    limit: String,
    level: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str, level: Level) -> Amount {
        Amount {
            quantity: Some(text.parse().unwrap()),
            level,
        }
    }

    fn reconciled(request: Amount, limit: Amount) -> Result<(String, String), BoundsError> {
        let mut bounds = Bounds { request, limit };
        bounds.reconcile("memory")?;
        let text = |amount: Amount| amount.quantity.unwrap().to_string();
        Ok((text(bounds.request), text(bounds.limit)))
    }

    #[test]
    fn the_installations_own_values_fit_together() {
        let mut resources = Resources::default();
        resources.reconcile().unwrap();
        assert_eq!(resources, Resources::default());
    }

    #[test]
    fn the_value_said_farther_from_the_pod_gives_way() {
        use Level::{Installation, Namespace, Pod};
        let small_limit = reconciled(amount("32Mi", Installation), amount("16Mi", Pod));
        assert_eq!(small_limit, Ok(("16Mi".into(), "16Mi".into())));
        let large_request = reconciled(amount("1Gi", Pod), amount("256Mi", Namespace));
        assert_eq!(large_request, Ok(("1Gi".into(), "1Gi".into())));
        let fitting = reconciled(amount("1Gi", Pod), amount("2Gi", Installation));
        assert_eq!(fitting, Ok(("1Gi".into(), "2Gi".into())));
    }

    #[test]
    fn two_values_of_one_pod_that_contradict_each_other_are_refused() {
        let error = reconciled(amount("2Gi", Level::Pod), amount("1Gi", Level::Pod)).unwrap_err();
        for part in ["memory", "2Gi", "1Gi", "pod"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
