//! What the cluster test deploys: applications, their clients and their load, as
//! one static program, `workload`. It knows nothing of Bulkhead, so that it is a
//! stranger's application as far as a mesh can tell.
//!
//! - [`serve`]: listeners of several protocols, which end politely on SIGTERM.
//! - [`load`]: requests at a steady rate, and what became of each.
//! - [`counts`]: the arithmetic of that.
//! - [`once`]: one request or one conversation, for Jobs and init containers.
//! - [`output`]: results as lines of JSON.

pub mod counts;
pub mod load;
pub mod once;
pub mod output;
pub mod serve;
