//! `crdgen [DIRECTORY]`: writes the definitions of our kinds into the chart of
//! the repository in this directory, the current one where there is none.

use std::path::PathBuf;

use anyhow::Context as _;
use bulkhead_crds::generate::{EMERGENCY_TEMPLATE, emergency, yaml};

fn main() -> anyhow::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .map_or_else(PathBuf::new, PathBuf::from);
    let path = root.join(EMERGENCY_TEMPLATE);
    std::fs::write(&path, yaml(emergency())?)
        .with_context(|| format!("writing {} failed", path.display()))
}
