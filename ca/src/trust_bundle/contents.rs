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
    /// Which version of the bundle it is.
    pub(super) sequence: u64,
}

/// How what is stored somewhere compares with what this replica would write
/// there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// It says that it is of after what this replica knows.
    Newer,
}

impl Contents {
    /// Nothing where the document is of no use, which is said.
    pub(super) fn of(document: &Arc<str>) -> Option<Self> {
        let read = TrustBundleDocument::from_json(document).map_err(|error| error.to_string());
        let read = read.and_then(|read| {
            let roots = Roots::new(read.x509_authorities);
            let roots = roots.map_err(|error| error.to_string())?;
            Ok((roots, read.sequence))
        });
        match read {
            Ok((roots, sequence)) => Some(Self {
                roots: roots.to_pem().into(),
                document: Arc::clone(document),
                sequence,
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

    /// What is to be said of a bundle that differs, by its sequence where it has
    /// one.
    pub(super) fn beside(&self, stored: Option<u64>) -> Verdict {
        match stored {
            Some(stored) if stored > self.sequence => Verdict::Newer,
            Some(_) | None => Verdict::Wrong,
        }
    }
}

/// The sequence of a document that others may have written.
pub(super) fn sequence_of(document: &str) -> Option<u64> {
    let read = TrustBundleDocument::from_json(document).ok()?;
    Some(read.sequence)
}
