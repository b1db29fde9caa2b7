//! Level 1 where the API server has no MutatingAdmissionPolicies (before
//! Kubernetes 1.36): a match condition of every webhook leaves out the pods for
//! which injection is stopped. The command puts it there, and the webhook keeps
//! it there.

use k8s_openapi::api::admissionregistration::v1::MatchCondition;

use super::{Emergency, InjectionStop, Terms};

/// The condition's name in each webhook.
pub const NAME: &str = "injection-is-not-stopped";

/// The condition by which the API server asks a webhook only about pods that no
/// switch is for; nothing where there is no switch.
///
/// It is the same for the same switches in any order. Expired ones are for the
/// caller to leave out: the API server has no clock in its expressions.
pub fn match_condition<'a>(
    stops: impl IntoIterator<Item = &'a InjectionStop>,
    system_namespace: &str,
) -> Option<MatchCondition> {
    let mut scopes: Vec<String> = stops
        .into_iter()
        .map(|stop| scope(stop, system_namespace))
        .collect();
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return None;
    }
    Some(MatchCondition {
        name: NAME.to_owned(),
        expression: format!("!({})", scopes.join(" || ")),
    })
}

/// Which pods a switch is for, as an expression.
fn scope(stop: &InjectionStop, system_namespace: &str) -> String {
    let namespace = stop.metadata.namespace.as_deref().unwrap_or_default();
    let here = (namespace != system_namespace)
        .then(|| format!("request.namespace == {}", literal(namespace)));
    let all: Vec<_> = here.into_iter().chain(labels(stop.terms())).collect();
    if all.is_empty() {
        return "true".to_owned();
    }
    format!("({})", all.join(" && "))
}

fn labels(terms: &Terms) -> impl Iterator<Item = String> {
    let selector = terms.selector.iter();
    let labels = selector.flat_map(|selector| &selector.match_labels);
    labels.map(|(name, value)| {
        let (name, value) = (literal(name), literal(value));
        format!(
            "has(object.metadata.labels) && {name} in object.metadata.labels && \
             object.metadata.labels[{name}] == {value}"
        )
    })
}

/// A string of CEL. A switch's labels are not checked by anybody before us, and
/// what is in them must not become a part of the expression.
fn literal(text: &str) -> String {
    let mut literal = String::from("'");
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || "-_./".contains(character) {
            literal.push(character);
        } else {
            literal.push_str(&format!("\\U{:08x}", u32::from(character)));
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cel::{Context, Program, Value};
    use serde_json::json;

    use super::*;

    fn stop(namespace: &str, labels: &[(&str, &str)]) -> InjectionStop {
        let mut spec = json!({"reason": "the webhook is slow"});
        if !labels.is_empty() {
            let labels: BTreeMap<_, _> = labels.iter().copied().collect();
            spec["selector"] = json!({"matchLabels": labels});
        }
        serde_json::from_value(json!({
            "apiVersion": "emergency.bulkhead.io/v1alpha1",
            "kind": "InjectionStop",
            "metadata": {"namespace": namespace, "name": "off"},
            "spec": spec,
        }))
        .unwrap()
    }

    /// Whether the webhook is asked about a pod.
    fn is_asked(stops: &[InjectionStop], namespace: &str, labels: &[(&str, &str)]) -> bool {
        let Some(condition) = match_condition(stops, "bulkhead-system") else {
            return true;
        };
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let metadata = if labels.is_empty() {
            json!({})
        } else {
            json!({"labels": labels})
        };
        let mut context = Context::default();
        let object = json!({"metadata": metadata});
        let request = json!({"namespace": namespace});
        context.add_variable("object", object).unwrap();
        context.add_variable("request", request).unwrap();
        let program = Program::compile(&condition.expression).unwrap();
        program.execute(&context).unwrap() == Value::Bool(true)
    }

    #[test]
    fn without_a_switch_there_is_no_condition() {
        assert_eq!(match_condition([], "bulkhead-system"), None);
    }

    #[test]
    fn a_switch_in_our_own_namespace_is_for_the_whole_mesh() {
        let stops = [stop("bulkhead-system", &[])];
        assert!(!is_asked(&stops, "shop", &[]));
        assert!(!is_asked(&stops, "bank", &[("app", "cart")]));
    }

    #[test]
    fn a_switch_in_a_namespace_is_for_that_namespace() {
        let stops = [stop("shop", &[]), stop("bank", &[("app", "ledger")])];
        assert!(!is_asked(&stops, "shop", &[("app", "cart")]));
        assert!(is_asked(&stops, "shopping", &[]));
        assert!(is_asked(&stops, "bank", &[]));
        assert!(is_asked(&stops, "bank", &[("app", "cart")]));
        assert!(!is_asked(&stops, "bank", &[("app", "ledger"), ("v", "2")]));
    }

    #[test]
    fn the_order_of_switches_changes_nothing() {
        let (one, two) = (stop("shop", &[]), stop("bank", &[]));
        assert_eq!(
            match_condition([&one, &two], "bulkhead-system"),
            match_condition([&two, &one, &two], "bulkhead-system")
        );
    }

    #[test]
    fn no_label_gets_out_of_its_quotes() {
        let hostile = "' || true || 'a\\";
        let stops = [stop("shop", &[("app", hostile)])];
        assert!(is_asked(&stops, "shop", &[("app", "cart")]));
        assert!(!is_asked(&stops, "shop", &[("app", hostile)]));
    }
}
