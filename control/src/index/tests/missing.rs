use super::world::{CART_POD, PLAIN_POD, World};

const LABELLED: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {bulkhead.io/inject: enabled}}
";

/// The names of the pods that miss their sidecar.
fn missing(manifests: &[&str]) -> Vec<String> {
    let world = World::with(manifests);
    let mut names: Vec<_> = world
        .index
        .missing_sidecars()
        .map(|(key, _)| key.name.to_string())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn a_pod_without_its_sidecar_in_a_namespace_that_asks_for_them_is_found() {
    assert_eq!(missing(&[LABELLED, CART_POD, PLAIN_POD]), ["plain-0"]);
    assert!(missing(&[CART_POD, PLAIN_POD]).is_empty());
}

#[test]
fn a_namespace_that_is_labelled_later_counts_for_the_pods_that_are_there() {
    assert_eq!(missing(&[PLAIN_POD, LABELLED]), ["plain-0"]);
}

#[test]
fn what_the_pod_says_counts_more_than_its_namespace() {
    let labelled =
        |value: &str| PLAIN_POD.replace("{app: cart}", &format!("{{bulkhead.io/inject: {value}}}"));
    assert!(missing(&[LABELLED, &labelled("disabled")]).is_empty());
    assert_eq!(missing(&[&labelled("enabled")]), ["plain-0"]);
}

#[test]
fn pods_that_could_not_have_one_miss_nothing() {
    let on_host = PLAIN_POD.replace("spec: {", "spec: {hostNetwork: true, ");
    let finished = PLAIN_POD.replace("Running", "Failed");
    let leaving = PLAIN_POD.replace(
        "metadata: {",
        "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ",
    );
    let istios = PLAIN_POD.replace("[{name: app}]", "[{name: app}, {name: istio-proxy}]");
    for pod in [on_host, finished, leaving, istios] {
        assert!(missing(&[LABELLED, &pod]).is_empty(), "{pod}");
    }
    let system = PLAIN_POD.replace("namespace: shop", "namespace: kube-system");
    let kube = LABELLED.replace("name: shop", "name: kube-system");
    assert!(missing(&[&kube, &system]).is_empty());
}
