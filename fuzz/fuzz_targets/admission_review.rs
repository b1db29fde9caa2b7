//! An AdmissionReview, from whoever can reach the webhook, with a pod from
//! whoever may create one.

#![no_main]

use std::sync::LazyLock;

use bulkhead_core::annotation::{INJECT, STATUS};
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_inject::{
    Decision, Defaults, INIT_CONTAINER, Namespace, PROXY_CONTAINER, TOKEN_VOLUME,
    TRUST_BUNDLE_VOLUME, inject, uninject,
};
use bulkhead_webhook::review::Request;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static DEFAULTS: LazyLock<Defaults> = LazyLock::new(|| {
    let trust_domain = "cluster.local".parse().expect("a trust domain");
    Defaults::new(PodSettings::new(trust_domain, "proxy".to_owned()))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = Request::parse(bytes) else {
        return;
    };
    let object = request
        .object
        .map(|object| serde_json::from_str(object.get()));
    let Some(Ok(pod)) = object else {
        return;
    };
    let namespace = Namespace {
        name: request.namespace.unwrap_or_default().into_owned(),
        labels: [(INJECT.to_owned(), "enabled".to_owned())].into(),
        ..Namespace::default()
    };
    let injection = match inject(&pod, &namespace, &DEFAULTS) {
        Decision::Inject(injection) => injection,
        Decision::Refuse(refusal) => return assert!(!refusal.message.is_empty()),
        Decision::Skip(_) => return,
    };

    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &injection.patch).expect("the patch fits the pod");
    match inject(&patched, &namespace, &DEFAULTS) {
        Decision::Inject(again) => assert!(again.patch.is_empty(), "injecting twice is once"),
        other => panic!("an injected pod is answered with {other:?}"),
    }
    if !uses_our_names(&pod) {
        assert_eq!(uninject(patched), pod, "what went in comes out");
    }
});

/// Whether the pod claims to be injected, or has what injection would replace.
fn uses_our_names(pod: &Value) -> bool {
    let text = pod.to_string();
    [
        STATUS,
        INIT_CONTAINER,
        PROXY_CONTAINER,
        TOKEN_VOLUME,
        TRUST_BUNDLE_VOLUME,
    ]
    .iter()
    .any(|name| text.contains(name))
}
