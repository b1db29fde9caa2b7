//! `crdgen [DIRECTORY]`: writes the definitions of our kinds into the chart of
//! the repository in this directory, the current one where there is none.

use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .map_or_else(PathBuf::new, PathBuf::from);
    for (path, text) in bulkhead_crds::generate::files()? {
        let path = root.join(path);
        std::fs::write(&path, text)
            .with_context(|| format!("writing {} failed", path.display()))?;
    }
    Ok(())
}
