//! What workloads are given, in both forms.

use std::sync::Arc;

use bulkhead_pki::bundle::Roots;
use bulkhead_pki::bundle::document::TrustBundleDocument;

/// The roots, and the document that they are from: never one of before with one
/// of after.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    /// In PEM, the one that signs first.
    pub(super) roots: Arc<str>,
    pub(super) document: Arc<str>,
}

impl Contents {
    /// Nothing where the document is of no use, which is said.
    pub(super) fn of(document: &Arc<str>) -> Option<Self> {
        let read = TrustBundleDocument::from_json(document).map_err(|error| error.to_string());
        let roots = read.and_then(|read| {
            let roots = Roots::new(read.x509_authorities);
            roots.map_err(|error| error.to_string())
        });
        match roots {
            Ok(roots) => Some(Self {
                roots: roots.to_pem().into(),
                document: Arc::clone(document),
            }),
            Err(error) => {
                tracing::error!(
                    error,
                    "the CA's own trust bundle cannot be read; workloads keep the one of before"
                );
                None
            }
        }
    }
}
