//! Selectors and match conditions: questions as the API server asks them.

use bulkhead_inject::expression::{OUT, says_inject};
use k8s_openapi::api::admissionregistration::v1::MatchCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement as Requirement;

use super::NAMESPACE_NAME;

/// Some name of `names` says inject, and it is the one at `way`: those before
/// it are absent.
pub(super) fn labels_say_inject(names: &[&str], way: usize) -> Vec<Requirement> {
    let mut requirements = labels_say_nothing(&names[..way]);
    requirements.push(requirement(names[way], "Exists", []));
    requirements.push(requirement(names[way], "NotIn", OUT));
    requirements
}

pub(super) fn labels_say_nothing(names: &[&str]) -> Vec<Requirement> {
    names
        .iter()
        .map(|name| requirement(name, "DoesNotExist", []))
        .collect()
}

pub(super) fn label_exists(name: &str) -> Requirement {
    requirement(name, "Exists", [])
}

pub(super) fn name_in<'a>(namespaces: impl IntoIterator<Item = &'a str>) -> Requirement {
    requirement(NAMESPACE_NAME, "In", namespaces)
}

pub(super) fn name_not_in<'a>(namespaces: impl IntoIterator<Item = &'a str>) -> Requirement {
    requirement(NAMESPACE_NAME, "NotIn", namespaces)
}

fn requirement<'a>(
    key: &str,
    operator: &str,
    values: impl IntoIterator<Item = &'a str>,
) -> Requirement {
    let values: Vec<String> = values.into_iter().map(ToOwned::to_owned).collect();
    Requirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then_some(values),
    }
}

const ANNOTATIONS: &str = "object.metadata.annotations";

/// The first of `names` that is there has a value other than "do not".
pub(super) fn annotations_say_inject(names: &[&str]) -> String {
    says_inject(ANNOTATIONS, names, "false")
}

pub(super) fn annotations_say_nothing(names: &[&str]) -> String {
    let any = names
        .iter()
        .map(|name| format!("'{name}' in {ANNOTATIONS}"))
        .collect::<Vec<_>>()
        .join(" || ");
    format!("!has({ANNOTATIONS}) || !({any})")
}

pub(super) fn match_conditions(
    conditions: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<MatchCondition> {
    conditions
        .into_iter()
        .map(|(name, expression)| MatchCondition {
            name: name.to_owned(),
            expression,
        })
        .collect()
}
