//! What the tests of the whole need: the real things around Bulkhead, started
//! for a test and gone after it.
//!
//! - [`apps`]: applications to put behind proxies, and their clients.
//! - [`api_server`]: a real Kubernetes API server.
//! - [`namespace`]: a namespace in it for one test, with its pods,
//!   ServiceAccounts and tokens.
//! - [`vault`], [`cert_manager`]: real CAs above ours.
//! - [`cluster`]: a real cluster with Bulkhead in it.
//! - [`network`]: network namespaces, and threads in them as other users.
//! - [`memory_group`]: a limit of memory for a program, as a container has.
//! - [`envoy`]: a real Envoy.
//! - [`subscriber`]: a proxy as control sees it.
//! - [`metrics`]: what a program of ours has counted.
//! - [`ports`]: ports for programs that must be told theirs.
//! - [`config`]: what the tests are told by their environment.
//! - [`balancer`]: one address for several replicas.

pub mod api_server;
pub mod apps;
pub mod balancer;
pub mod cert_manager;
pub mod cluster;
pub mod config;
pub mod envoy;
pub mod memory_group;
pub mod metrics;
pub mod namespace;
pub mod network;
pub mod ports;
pub mod subscriber;
pub mod vault;
