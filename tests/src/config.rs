//! What the tests are told by their environment.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Names the directory that `tests/kubernetes/build` printed.
const KUBERNETES: &str = "BULKHEAD_KUBERNETES";

/// The directory with Kubernetes' programs, `kube-apiserver` among them.
///
/// A test that needs them fails where they are absent. Skipped, it would look
/// passed.
pub(crate) fn kubernetes_programs() -> Result<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the config.rs of the tests"
    )]
    let directory = std::env::var_os(KUBERNETES).map(PathBuf::from);
    let directory = directory.with_context(|| {
        format!(
            "{KUBERNETES} does not say where Kubernetes' programs are; \
             `./scripts/test apiserver` builds them, sets it and runs these tests"
        )
    })?;
    ensure!(
        directory.join("kube-apiserver").exists(),
        "{KUBERNETES} is {}, and there is no kube-apiserver in it; \
         `./scripts/test apiserver` builds it, sets the variable and runs these tests",
        directory.display()
    );
    Ok(directory)
}
