//! Why a switch is turned, and for how long.

use std::time::{Duration, SystemTime};

use bulkhead_core::duration;
use bulkhead_crds::emergency::Terms;
use clap::{Args, ValueEnum};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::scope::Scope;

/// What is written where nobody said why.
const NO_REASON: &str = "no reason was given";
/// What lasts longer is no emergency.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why, for how long, and whether to do it at all.
#[derive(Args, Clone, Debug)]
pub(crate) struct TermsArgs {
    /// After how long the switch turns itself back, such as 30m; without it,
    /// when somebody does
    #[arg(long = "for", value_name = "DURATION", value_parser = lasts)]
    lasts: Option<Duration>,
    /// Why; everybody who finds the switch on reads this
    #[arg(long, value_name = "TEXT", default_value = NO_REASON)]
    reason: String,
    /// Change nothing, and print the switch for `kubectl apply -f -`
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to print it
    #[arg(long, short, value_enum, default_value = "yaml", requires = "dry_run")]
    pub(crate) output: Output,
}

/// How an object is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Output {
    Yaml,
    Json,
}

/// What is asked for, in a scope.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) scope: Scope,
    pub(crate) terms: Terms,
    pub(crate) now: SystemTime,
}

impl TermsArgs {
    pub(crate) fn request(&self, scope: Scope, now: SystemTime) -> Request {
        let terms = Terms {
            reason: self.reason.clone(),
            by: None,
            until: self.lasts.and_then(|lasts| until(now, lasts)),
            selector: scope.selector().cloned(),
            workload: scope.workload().map(ToString::to_string),
        };
        Request { scope, terms, now }
    }
}

/// Reads a time limit. One that is none must not be taken for one.
fn lasts(text: &str) -> Result<Duration, String> {
    let lasts = duration::parse(text).map_err(|error| error.to_string())?;
    if lasts < Duration::from_secs(1) || lasts > LONGEST {
        return Err(
            "a switch lasts from a second to a year; without --for it has no limit".to_owned(),
        );
    }
    Ok(lasts)
}

/// A time from now, to the second: the API server stores no less.
fn until(now: SystemTime, lasts: Duration) -> Option<Time> {
    let end = now.checked_add(lasts)?;
    let seconds = end.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Timestamp::from_second(i64::try_from(seconds).ok()?)
        .ok()
        .map(Time)
}

/// An end as people read it: the time, and how far away it is.
pub(crate) fn end(until: Option<&Time>, now: SystemTime) -> String {
    let Some(until) = until else {
        return "until somebody turns it back".to_owned();
    };
    match SystemTime::from(until.0).duration_since(now) {
        Ok(left) => {
            let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
            format!("until {} (for {})", until.0, duration::format(left))
        }
        Err(_) => format!("until {}, which is over", until.0),
    }
}
