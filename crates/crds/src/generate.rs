//! The definitions of our kinds, as the chart ships them.
//!
//! They are rendered as templates of the chart and not from Helm's own `crds`
//! directory, which Helm neither upgrades nor removes. `cargo run -p
//! bulkhead-crds` writes them; a test compares.

use std::path::PathBuf;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::certificate_authority::CertificateAuthority;
use crate::emergency::{Bypass, Ejection, InjectionStop};

/// Where the chart looks for definitions, in the repository.
const DIRECTORY: &str = "charts/bulkhead/files/crds";

/// Every file of the chart that is made from this crate: its path in the
/// repository, and what is in it.
pub fn files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    definitions()
        .into_iter()
        .map(|(directory, definition)| {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let path = PathBuf::from(directory).join(format!("{name}.yaml"));
            Ok((path, yaml(&definition)?))
        })
        .collect()
}

/// The definitions, each with the directory that it goes to.
fn definitions() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        (DIRECTORY, InjectionStop::crd()),
        (DIRECTORY, Bypass::crd()),
        (DIRECTORY, Ejection::crd()),
        (DIRECTORY, CertificateAuthority::crd()),
    ]
}

fn yaml(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    let mut text = String::from("# Made by `cargo run -p bulkhead-crds`; do not edit.\n");
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_fmt_writer_with_options(&mut text, definition, options)
        .context("writing a definition as YAML failed")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_the_definitions_of_this_code() {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        for (path, made) in files().unwrap() {
            let shipped = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(
                shipped == made,
                "{} is not what `cargo run -p bulkhead-crds` makes",
                path.display()
            );
        }
    }
}
