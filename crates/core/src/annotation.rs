//! Every annotation that people may write, as one table: validation, `bulkhead
//! explain`, `docs/annotations.md` and the tests come from it.
//!
//! ```text
//!  namespace's annotations ─┐
//!  pod's annotations ───────┴─▶ apply ──▶ TABLE row ──▶ value, parsed ──▶ PodSettings
//! ```
//!
//! A value that cannot be used is an error, never a silent default, and no value
//! is ever copied as text into anything: it becomes a typed field of
//! [`PodSettings`] or it is refused.
//!
//! To add an annotation, add a row to [`TABLE`] (and a field to what it
//! changes); the tests ask for the rest.

use std::fmt;

use crate::pod_settings::PodSettings;
use crate::resources::Level;

mod docs;
mod foreign;
mod inject;
mod suggest;
mod table;
mod value;

pub use docs::default_text;
pub use docs::markdown;
pub use foreign::unhonoured;
pub use inject::INJECT_SOURCES;
pub use inject::InjectSource;
pub use inject::Place;
pub use inject::parse_inject;
pub use suggest::suggest;
pub use table::TABLE;

/// What the names of Bulkhead's own annotations and labels start with.
pub const PREFIX: &str = "bulkhead.io/";

/// Decides whether a pod is injected; a label or an annotation, see
/// [`INJECT_SOURCES`].
pub const INJECT: &str = "bulkhead.io/inject";

/// Written by injection, for people and for undoing it; what a person writes
/// there is overwritten.
pub const STATUS: &str = "bulkhead.io/status";

/// The longest value that is read, in bytes. The longest useful one is a list
/// of 256 port ranges.
pub const MAX_VALUE_LENGTH: usize = 4096;

/// One row of the table.
#[derive(Debug)]
pub struct Annotation {
    pub name: &'static str,
    /// Names that Istio and Linkerd give to the same thing, read where Bulkhead's
    /// own is absent; the first that is there counts.
    pub compatible: &'static [Compatible],
    /// What may be written, in words that complete "allowed: ...".
    pub allowed: &'static str,
    /// A value that somebody might write.
    pub example: &'static str,
    /// What it does, in whole sentences.
    pub doc: &'static str,
    /// The value as it stands in the settings.
    show: fn(&PodSettings) -> String,
    /// Parses a value and sets it.
    set: fn(&mut PodSettings, &str, Level) -> Result<(), String>,
}

/// Another mesh's name for an annotation.
#[derive(Debug)]
pub struct Compatible {
    pub name: &'static str,
    /// The value in Bulkhead's spelling; nothing where it has the same one.
    translate: Option<Translate>,
}

/// How a value of another mesh's spelling is said in Bulkhead's.
#[derive(Clone, Copy, Debug)]
struct Translate(fn(&str) -> Result<String, String>);

impl Annotation {
    /// The value that the settings have.
    pub fn show(&self, settings: &PodSettings) -> String {
        (self.show)(settings)
    }

    /// Parses a value and puts it into the settings.
    pub fn set(
        &self,
        settings: &mut PodSettings,
        value: &str,
        level: Level,
    ) -> Result<(), AnnotationError> {
        self.set_as(self.name, None, settings, value, level)
    }

    fn set_as(
        &self,
        name: &str,
        translate: Option<Translate>,
        settings: &mut PodSettings,
        value: &str,
        level: Level,
    ) -> Result<(), AnnotationError> {
        let result = if value.len() > MAX_VALUE_LENGTH {
            Err(format!("it is longer than {MAX_VALUE_LENGTH} bytes"))
        } else {
            match translate {
                Some(Translate(translate)) => {
                    translate(value).and_then(|value| (self.set)(settings, &value, level))
                }
                None => (self.set)(settings, value, level),
            }
        };
        result.map_err(|problem| AnnotationError {
            name: name.to_owned(),
            level,
            problem: Problem::Value {
                value: value.chars().take(SHOWN_LENGTH).collect(),
                problem,
                allowed: self.allowed,
            },
        })
    }
}

/// How much of a name or value an error shows, in characters.
const SHOWN_LENGTH: usize = 128;

/// The row of this name, which may be another mesh's.
pub fn find(name: &str) -> Option<&'static Annotation> {
    TABLE
        .iter()
        .find(|row| row.name == name || row.compatible.iter().any(|other| other.name == name))
}

/// Puts the annotations of a pod or namespace into the settings, and returns
/// everything that is wrong with them.
pub fn apply<'a>(
    settings: &mut PodSettings,
    annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    level: Level,
) -> Result<(), Vec<AnnotationError>> {
    let relevant: Vec<_> = annotations
        .into_iter()
        .filter(|(name, _)| is_relevant(name))
        .collect();
    if relevant.is_empty() {
        return Ok(());
    }
    let mut errors: Vec<_> = relevant
        .iter()
        .filter(|(name, _)| is_unknown(name))
        .take(TABLE.len())
        .map(|(name, _)| AnnotationError::unknown(name, level))
        .collect();
    let get = |name: &str| {
        relevant
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| *value)
    };
    for row in TABLE {
        let found = match get(row.name) {
            Some(value) => Some((row.name, None, value)),
            None => row.compatible.iter().find_map(|compatible| {
                Some((compatible.name, compatible.translate, get(compatible.name)?))
            }),
        };
        if let Some((name, translate, value)) = found {
            errors.extend(row.set_as(name, translate, settings, value, level).err());
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// Whether an annotation of this name may have a row: the others, most of them,
/// need not be looked up.
pub fn is_relevant(name: &str) -> bool {
    name.split_once('/').is_some_and(|(prefix, _)| {
        ["bulkhead.io", "istio.io", "linkerd.io"]
            .iter()
            .any(|domain| prefix.ends_with(domain))
    })
}

/// Whether it is one of ours by its name, and there is none of that name.
fn is_unknown(name: &str) -> bool {
    name.starts_with(PREFIX) && name != STATUS && TABLE.iter().all(|row| row.name != name)
}

/// An annotation that cannot be honoured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AnnotationError {
    name: String,
    level: Level,
    problem: Problem,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Problem {
    Unknown {
        suggestion: Option<&'static str>,
    },
    Value {
        value: String,
        problem: String,
        allowed: &'static str,
    },
}

impl AnnotationError {
    fn unknown(name: &str, level: Level) -> Self {
        Self {
            name: name.chars().take(SHOWN_LENGTH).collect(),
            level,
            problem: Problem::Unknown {
                suggestion: suggest(name),
            },
        }
    }

    /// Whether there is no annotation of that name; else its value is wrong.
    pub fn is_unknown(&self) -> bool {
        matches!(self.problem, Problem::Unknown { .. })
    }
}

impl std::error::Error for AnnotationError {}

impl fmt::Display for AnnotationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, level, .. } = self;
        let level = level.as_str();
        match &self.problem {
            Problem::Unknown { suggestion } => {
                write!(
                    f,
                    "the {level} has an annotation {name:?}, and there is none of that name"
                )?;
                match suggestion {
                    Some(suggestion) => write!(f, ": did you mean {suggestion}?"),
                    None => write!(f, "; `bulkhead explain` lists all there are"),
                }
            }
            Problem::Value {
                value,
                problem,
                allowed,
            } => write!(
                f,
                "annotation {name} of the {level} cannot have the value {value:?}: {problem}; \
                 allowed: {allowed}"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
