//! A certificate request, from anybody who can reach the CA.

#![no_main]

use bulkhead_pki::csr::ParsedCsr;
use bulkhead_pki::pem;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ParsedCsr::from_pem(text);
    }
    let Ok(request) = ParsedCsr::from_der(bytes) else {
        return;
    };
    // In its other form it asks for the same.
    let text = pem::encode("CERTIFICATE REQUEST", bytes);
    if let Ok(again) = ParsedCsr::from_pem(&text) {
        assert_eq!(again.uris(), request.uris());
        assert_eq!(again.other_names(), request.other_names());
        assert_eq!(again.public_key().kind(), request.public_key().kind());
    }
});
