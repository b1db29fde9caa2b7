//! Where the settings come from: the environment, and nothing else.

use bulkhead_core::settings::SettingsError;
use bulkhead_core::sidecar::SidecarConfig;

/// Reads the settings that the webhook, or whoever runs a proxy outside
/// Kubernetes, wrote into the environment.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the proxy's one place that reads the environment"
)]
pub fn from_environment() -> Result<SidecarConfig, SettingsError> {
    SidecarConfig::from_env(&|name| std::env::var(name).ok())
}
