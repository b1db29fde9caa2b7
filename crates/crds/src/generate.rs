//! The definitions of our kinds, as the chart ships them.
//!
//! They are templates of the chart and not files in Helm's `crds` directory,
//! which Helm neither upgrades nor removes. `cargo run -p bulkhead-crds` writes
//! them; a test compares.

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::emergency::{Bypass, Ejection, InjectionStop};

/// Where the kill switch's definitions lie in the repository.
pub const EMERGENCY_TEMPLATE: &str = "charts/bulkhead/templates/emergency-crds.yaml";

/// The kill switch's definitions.
pub fn emergency() -> Vec<CustomResourceDefinition> {
    vec![InjectionStop::crd(), Bypass::crd(), Ejection::crd()]
}

/// Definitions as a stream of YAML documents.
pub fn yaml(definitions: Vec<CustomResourceDefinition>) -> anyhow::Result<String> {
    let mut text = String::from("# Made by `cargo run -p bulkhead-crds`; do not edit.\n");
    for mut definition in definitions {
        let labels = definition.metadata.labels.get_or_insert_default();
        labels.insert(
            "app.kubernetes.io/part-of".to_owned(),
            "bulkhead".to_owned(),
        );
        let name = definition.metadata.name.clone().unwrap_or_default();
        let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
        text.push_str("---\n");
        serde_saphyr::to_fmt_writer_with_options(&mut text, &definition, options)
            .with_context(|| format!("writing the definition of {name} as YAML failed"))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_the_definitions_of_this_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        let path = format!("{path}{EMERGENCY_TEMPLATE}");
        let shipped = std::fs::read_to_string(&path).unwrap();
        assert!(
            shipped == yaml(emergency()).unwrap(),
            "{path} is not what `cargo run -p bulkhead-crds` makes"
        );
    }
}
