//! The certificate authority: who proves to be a workload gets that workload's
//! certificate, and nobody gets anything else.
//!
//! ```text
//!  connection ─ server ─▶ service ─┬─ admission ────▶ a turn      (fair by address, then caller)
//!                                  ├─ authenticate ─▶ Caller      (TokenReview, or keys)
//!                                  ├─ vet ──────────▶ VettedCsr   (asks for the caller, or nothing)
//!                                  ├─ issuer ───────▶ Issued      (by a key here, or by an upstream)
//!                                  └─ audit, metrics
//!  store (directory or Secret) ──▶ issuer: root and intermediate, renewed in time
//!                                    ├─ trust_bundle ─▶ a ConfigMap in every namespace
//!                                    └─ status ◀──────▶ the CertificateAuthority object
//! ```
//!
//! In reading order:
//! - [`config`]: the settings.
//! - [`app`]: the wiring.
//! - [`server`]: connections, TLS and HTTP/2, with bounds on everything.
//! - [`limits`]: how much anybody can make us hold.
//! - [`service`]: the call, as one paragraph.
//! - [`admission`]: whose turn it is, by what [`claims`] say and [`queue`] allows.
//! - [`authenticate`]: a bearer token becomes a [`authenticate::Caller`].
//! - [`https`]: how documents are fetched.
//! - [`node_proxy`]: who may ask for whom.
//! - [`vet`]: a caller and a request become a [`vet::VettedCsr`].
//! - [`workload_tokens`]: JWT-SVIDs; [`openid`]: where others find their keys.
//! - [`issuer`]: what signs.
//! - [`upstream`]: who signs above us; the place for another.
//! - [`rotation`]: how roots and intermediates follow each other.
//! - [`keyring`]: all of them with their keys; [`store`]: where they are kept.
//! - [`trust_bundle`]: the roots, where pods find them.
//! - [`status`]: the CertificateAuthority object; [`presence`]: all that there is of
//!   the CA in the API server.
//! - [`pod_certificate`]: a signer of Kubernetes' own requests.
//! - [`steer`]: the subcommands that order a rotation in a directory.
//! - [`serving`]: this server's own certificate.
//! - [`audit`], [`metrics`], [`admin`]: what is told about it all.
//! - `fuzzing`: a request that nobody vetted, for `fuzz/` alone.
//!
//! A passed check is a value with private fields and one constructor, so that no
//! path leads past it.
//!
//! # What the ServiceAccount must be allowed
//!
//! | resource | verbs | where | why |
//! |---|---|---|---|
//! | `tokenreviews.authentication.k8s.io` | create | cluster | whose token it is |
//! | `pods` | list, watch | cluster | whether a reviewed token's pod is still there, and what runs on a node proxy's node |
//! | `secrets` named `bulkhead-ca` | get, list, watch, update | own namespace | root and intermediate; that they changed is watched, and nothing in them |
//! | `secrets` | create | own namespace | the first root; `create` cannot be limited to a name |
//! | `namespaces` | list, watch | cluster | where the trust bundle belongs |
//! | `configmaps` named `bulkhead-trust-bundle` | list, watch, create, patch | cluster | the trust bundle, in every namespace |
//! | `clustertrustbundles.certificates.k8s.io` named `ca.bulkhead.io:x509-svid:bulkhead` | get, create, patch | cluster | the trust bundle for pods that ask for it |
//! | `signers.certificates.k8s.io` named `ca.bulkhead.io/x509-svid` | attest | cluster | that trust bundle is this signer's |
//! | `certificaterequests.cert-manager.io` | list, watch, create, delete | own namespace | its intermediates or each leaf, where cert-manager signs them; only where that was chosen |
//! | `podcertificaterequests.certificates.k8s.io` | list, watch | cluster | whom to sign for; this and the next four only where that was switched on |
//! | `podcertificaterequests/status.certificates.k8s.io` | patch | cluster | the answer |
//! | `signers.certificates.k8s.io` named `ca.bulkhead.io/x509-svid` | sign | cluster | the answer |
//! | `pods` | get | cluster | whether the pod is as the request says |
//! | `serviceaccounts` | get | cluster | whether the ServiceAccount is as the request says |
//! | `certificateauthorities.ca.bulkhead.io` named `bulkhead` | get, list, watch, create, patch | own namespace | what people ask for |
//! | `certificateauthorities/status.ca.bulkhead.io` named `bulkhead` | patch | own namespace | what there is |
//! | `events.events.k8s.io` | create, patch | own namespace | what happens to authorities |
//! | `leases` named `bulkhead-ca` | get, update | own namespace | one replica rotates |
//! | `leases` | create | own namespace | the first lease; `create` cannot be limited to a name |
//! | `clusterroles` named as `BULKHEAD_CA_OWNER` says | get | cluster | the owner of what the CA makes |
//!
//! ConfigMaps are applied by PATCH, which carries the name, so that here `create`
//! can be limited to it.

pub mod admin;
pub mod admission;
pub mod app;
pub mod audit;
pub mod authenticate;
pub mod claims;
pub mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod https;
pub mod issuer;
pub mod keyring;
pub mod limits;
pub mod metrics;
pub mod node_proxy;
pub mod openid;
pub mod pod_certificate;
pub mod presence;
pub mod queue;
pub mod rotation;
pub mod server;
pub mod service;
pub mod serving;
pub mod status;
pub mod steer;
pub mod store;
pub mod trust_bundle;
pub mod upstream;
pub mod vet;
pub mod workload_tokens;
