//! Where the settings come from: the environment, and nothing else.

use bulkhead_core::redirect::RedirectConfig;
use bulkhead_core::settings::SettingsError;

/// Reads what the webhook wrote into the environment (`BULKHEAD_REDIRECT_*`).
#[expect(
    clippy::disallowed_methods,
    reason = "this is bulkhead-init's one place that reads the environment"
)]
pub fn from_environment() -> Result<RedirectConfig, SettingsError> {
    RedirectConfig::from_env(&|name| std::env::var(name).ok())
}
