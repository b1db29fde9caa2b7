//! A request that nobody vetted, for fuzz targets: no other build has this.

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::csr::ParsedCsr;

use crate::vet::VettedCsr;

/// What an upstream would be asked for on behalf of `id`.
pub fn vetted(id: SpiffeId, csr: ParsedCsr) -> VettedCsr {
    VettedCsr::trial(id, csr)
}
