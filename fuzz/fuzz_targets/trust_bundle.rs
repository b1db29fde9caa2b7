//! A SPIFFE bundle document, from whoever publishes one.

#![no_main]

use bulkhead_pki::bundle::document::TrustBundleDocument;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(document) = TrustBundleDocument::from_json(text) else {
        return;
    };
    // A root whose key is of a kind that we do not know cannot be written.
    let Ok(written) = document.to_json() else {
        return;
    };
    let read = TrustBundleDocument::from_json(&written).expect("what was written");
    assert_eq!(read, document);
    let trust_domain = "cluster.local".parse().expect("a trust domain");
    if let Ok(bundle) = document.trust_bundle(trust_domain) {
        assert_eq!(bundle.sequence(), document.sequence);
        assert_eq!(bundle.id().to_string().parse(), Ok(bundle.id()));
    }
});
