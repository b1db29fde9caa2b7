//! The selectors as the API server evaluates them, beside what injection
//! decides. CEL is evaluated by an interpreter of its own; that the API server
//! takes and evaluates the same text alike is tested against a real one.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_inject::{Decision, Defaults, InjectReason, inject};
use cel::{Context, Program};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::*;

type Words = BTreeMap<String, String>;

/// A namespace and a pod in it.
struct Case {
    namespace: Namespace,
    pod: Value,
}

fn defaults(inject_by_default: bool) -> Defaults {
    let domain = TrustDomain::new("cluster.local").unwrap();
    let settings = PodSettings::new(domain, "bulkhead-proxy:test".to_owned());
    Defaults {
        inject_by_default,
        ..Defaults::new(settings)
    }
}

fn inputs(namespaces: &[Namespace], inject_by_default: bool) -> Inputs {
    Inputs {
        name: DEFAULT_NAME.to_owned(),
        target: Target::Url("https://127.0.0.1:15017/".to_owned()),
        ca_bundle: "the bundle".to_owned(),
        system_namespace: "bulkhead-system".to_owned(),
        inject_by_default,
        standings: namespaces
            .iter()
            .filter_map(|namespace| Some((namespace.name.clone(), standing(namespace)?)))
            .collect(),
        self_test: false,
        owners: Vec::new(),
        stop: None,
    }
}

fn namespace(name: &str, labels: Words, annotations: Words) -> Namespace {
    Namespace {
        name: name.to_owned(),
        labels,
        annotations,
    }
}

fn pod(labels: &Words, annotations: &Words) -> Value {
    let mut metadata = json!({"name": "cart"});
    // Like the API server, which leaves out what is empty.
    for (field, words) in [("labels", labels), ("annotations", annotations)] {
        if !words.is_empty() {
            metadata[field] = json!(words);
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    })
}

fn selects(selector: Option<&LabelSelector>, labels: &Words) -> bool {
    let expressions = selector.and_then(|selector| selector.match_expressions.as_deref());
    expressions.unwrap_or_default().iter().all(|requirement| {
        let listed = |value: &String| {
            requirement
                .values
                .as_ref()
                .is_some_and(|values| values.contains(value))
        };
        let value = labels.get(&requirement.key);
        match requirement.operator.as_str() {
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "In" => value.is_some_and(listed),
            "NotIn" => !value.is_some_and(listed),
            other => panic!("{other} is no operator"),
        }
    })
}

/// A webhook with its conditions compiled.
struct Compiled {
    webhook: MutatingWebhook,
    conditions: Vec<Program>,
}

fn compile(configuration: MutatingWebhookConfiguration) -> Vec<Compiled> {
    let webhooks = configuration.webhooks.unwrap();
    webhooks
        .into_iter()
        .map(|webhook| Compiled {
            conditions: webhook
                .match_conditions
                .iter()
                .flatten()
                .map(|condition| Program::compile(&condition.expression).unwrap())
                .collect(),
            webhook,
        })
        .collect()
}

/// The webhooks that the API server calls.
fn called<'a>(webhooks: &'a [Compiled], case: &Case) -> Vec<&'a MutatingWebhook> {
    let mut namespace_labels = case.namespace.labels.clone();
    let name = case.namespace.name.clone();
    namespace_labels.insert(NAMESPACE_NAME.to_owned(), name);
    let pod_labels: Words =
        serde_json::from_value(case.pod["metadata"]["labels"].clone()).unwrap_or_default();
    let mut context = Context::default();
    context.add_variable("object", &case.pod).unwrap();
    let mut called = Vec::new();
    for Compiled {
        webhook,
        conditions,
    } in webhooks
    {
        if selects(webhook.namespace_selector.as_ref(), &namespace_labels)
            && selects(webhook.object_selector.as_ref(), &pod_labels)
            && conditions
                .iter()
                .all(|condition| condition.execute(&context).unwrap() == cel::Value::Bool(true))
        {
            called.push(webhook);
        }
    }
    called
}

/// Everything that one place may say: nothing; each name with each kind of
/// value; and Bulkhead's own name against each of the others.
fn sayings(place: Place) -> Vec<Words> {
    let names = names(place);
    let word = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut sayings = vec![Words::new()];
    for name in names {
        for value in ["enabled", "true", "disabled", "false", "perhaps", ""] {
            sayings.push(Words::from([word(name, value)]));
        }
    }
    for other in &names[1..] {
        for (own, foreign) in [
            ("enabled", "disabled"),
            ("disabled", "true"),
            ("perhaps", "false"),
        ] {
            sayings.push(Words::from([word(names[0], own), word(other, foreign)]));
        }
    }
    sayings
}

#[test]
fn the_api_server_asks_about_exactly_the_pods_that_injection_does_not_skip() {
    let namespaces: Vec<Namespace> = sayings(Place::NamespaceLabel)
        .into_iter()
        .flat_map(|labels| {
            let annotations = sayings(Place::NamespaceAnnotation);
            annotations
                .into_iter()
                .map(move |said| (labels.clone(), said))
        })
        .enumerate()
        .map(|(number, (labels, said))| namespace(&format!("n{number}"), labels, said))
        .collect();
    let pods: Vec<Value> = sayings(Place::PodLabel)
        .iter()
        .flat_map(|labels| {
            sayings(Place::PodAnnotation)
                .into_iter()
                .map(|said| pod(labels, &said))
        })
        .collect();
    let mut checked = 0;
    for inject_by_default in [false, true] {
        let defaults = defaults(inject_by_default);
        let webhooks = compile(configuration(&inputs(&namespaces, inject_by_default)));
        for (at, namespace) in namespaces.iter().enumerate() {
            // Every pod in some namespaces and some pods in every namespace:
            // neighbours differ in one word, so steps that share no factor with
            // the counts reach all of both.
            for pod in pods.iter().skip(at % 31).step_by(31) {
                let case = Case {
                    namespace: namespace.clone(),
                    pod: pod.clone(),
                };
                let decision = inject(pod, namespace, &defaults);
                let by_default = matches!(
                    &decision,
                    Decision::Inject(injection) if injection.reason == InjectReason::Default
                );
                let expected = match (&decision, by_default) {
                    (Decision::Skip(_), _) => vec![],
                    (_, true) => vec!["Ignore"],
                    (_, false) => vec!["Fail"],
                };
                let policies: Vec<_> = called(&webhooks, &case)
                    .into_iter()
                    .map(|webhook| webhook.failure_policy.as_deref().unwrap())
                    .collect();
                assert_eq!(policies, expected, "{namespace:?} {pod} {decision:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 10_000, "only {checked} cases");
}

/// A pod and a namespace that ask for injection in every way.
fn eager(name: &str) -> Case {
    let word = |name: &str| Words::from([(name.to_owned(), "enabled".to_owned())]);
    let inject = bulkhead_core::annotation::INJECT;
    Case {
        namespace: namespace(name, word(inject), word(inject)),
        pod: pod(&word(inject), &word(inject)),
    }
}

#[test]
fn pods_that_no_sidecar_can_serve_stay_with_the_api_server() {
    let all = compile(configuration(&inputs(&[], true)));
    assert_eq!(called(&all, &eager("shop")).len(), 1);
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("os", json!({"name": "windows"})),
        ("nodeSelector", json!({"kubernetes.io/os": "windows"})),
        ("nodeSelector", json!({"beta.kubernetes.io/os": "windows"})),
    ] {
        let mut case = eager("shop");
        case.pod["spec"][field] = value;
        let decision = inject(&case.pod, &case.namespace, &defaults(true));
        assert!(
            matches!(decision, Decision::Skip(_)),
            "{field}: {decision:?}"
        );
        assert_eq!(
            called(&all, &case),
            Vec::<&MutatingWebhook>::new(),
            "{field}"
        );
    }
    for (field, value) in [
        ("hostNetwork", json!(false)),
        ("os", json!({"name": "linux"})),
        (
            "nodeSelector",
            json!({"kubernetes.io/os": "linux", "disk": "windows"}),
        ),
    ] {
        let mut case = eager("shop");
        case.pod["spec"][field] = value;
        assert_eq!(called(&all, &case).len(), 1, "{field}");
    }
}

#[test]
fn system_namespaces_and_our_own_never_depend_on_us_whatever_they_say() {
    let names = [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "bulkhead-system",
    ];
    let mut unlabelled: Vec<Case> = names.map(eager).into();
    for case in &mut unlabelled {
        case.namespace.labels.clear();
    }
    for inject_by_default in [false, true] {
        let named: Vec<_> = unlabelled
            .iter()
            .map(|case| case.namespace.clone())
            .collect();
        let all = compile(configuration(&inputs(&named, inject_by_default)));
        for case in names.map(eager).iter().chain(&unlabelled) {
            assert_eq!(called(&all, case), Vec::<&MutatingWebhook>::new());
            let mut quiet = Case {
                namespace: case.namespace.clone(),
                pod: pod(&Words::new(), &Words::new()),
            };
            assert!(called(&all, &quiet).is_empty());
            quiet.namespace.annotations.clear();
            assert!(called(&all, &quiet).is_empty());
        }
    }
}

#[test]
fn every_webhook_has_a_dns_name_of_its_own_and_can_be_retried_safely() {
    let annotated = eager("annotated").namespace;
    let annotated = namespace(&annotated.name, Words::new(), annotated.annotations);
    let webhooks = configuration(&inputs(&[annotated], true)).webhooks.unwrap();
    let names: BTreeSet<_> = webhooks
        .iter()
        .map(|webhook| webhook.name.as_str())
        .collect();
    assert_eq!((names.len(), webhooks.len()), (8, 8), "{names:?}");
    for webhook in &webhooks {
        let is_dns = webhook.name.split('.').all(|part| {
            !part.is_empty()
                && part.len() <= 63
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        });
        assert!(
            is_dns && webhook.name.split('.').count() >= 3,
            "{}",
            webhook.name
        );
        assert_eq!(webhook.reinvocation_policy.as_deref(), Some("IfNeeded"));
        assert_eq!(webhook.side_effects, "NoneOnDryRun");
        assert_eq!(webhook.timeout_seconds, Some(TIMEOUT_SECONDS));
        let url = webhook.client_config.url.as_deref();
        assert_eq!(url, Some("https://127.0.0.1:15017/inject"));
    }
}

#[test]
fn a_configuration_differs_from_what_somebody_edited_and_not_from_itself() {
    let desired = configuration(&inputs(&[], false));
    let mut existing = desired.clone();
    existing.metadata.resource_version = Some("7".to_owned());
    existing.metadata.labels.get_or_insert_default().insert(
        "argocd.argoproj.io/instance".to_owned(),
        "bulkhead".to_owned(),
    );
    existing.webhooks.as_mut().unwrap().reverse();
    assert!(
        !differs(&existing, &desired),
        "an order and a label are nobody's concern"
    );

    let edited = |edit: &dyn Fn(&mut MutatingWebhook)| {
        let mut existing = desired.clone();
        edit(&mut existing.webhooks.as_mut().unwrap()[0]);
        differs(&existing, &desired)
    };
    assert!(edited(&|webhook| webhook.client_config.ca_bundle = None));
    assert!(edited(
        &|webhook| webhook.failure_policy = Some("Ignore".to_owned())
    ));
    assert!(edited(&|webhook| webhook.match_conditions = None));
    assert!(edited(
        &|webhook| webhook.name = "other.inject.bulkhead.io".to_owned()
    ));
    let nothing = MutatingWebhookConfiguration::default();
    assert!(differs(&nothing, &desired));
}

#[test]
fn a_namespace_stands_by_its_annotations_only_where_no_label_decides() {
    let word = |name: &str, value: &str| Words::from([(name.to_owned(), value.to_owned())]);
    let annotated = |value| word("linkerd.io/inject", value);
    let of = |labels, annotations| standing(&namespace("n", labels, annotations));
    assert_eq!(of(Words::new(), annotated("enabled")), Some(Standing::In));
    assert_eq!(of(Words::new(), annotated("disabled")), Some(Standing::Out));
    assert_eq!(of(Words::new(), annotated("perhaps")), Some(Standing::In));
    assert_eq!(
        of(word("istio-injection", "disabled"), annotated("enabled")),
        None
    );
    assert_eq!(of(Words::new(), Words::new()), None);
}
