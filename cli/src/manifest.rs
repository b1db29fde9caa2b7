//! Streams of Kubernetes manifests: YAML documents with `---` between them, or
//! JSON. What a command does not change leaves as it came, byte for byte,
//! comments and separators included.
//!
//! - `split`: where a stream's documents begin and end.
//! - `objects`: which objects a document holds, and where their pods are.

use std::path::Path;

use anyhow::Context;
use anyhow::anyhow;
use serde_json::Value;

mod objects;
mod split;

pub use objects::Object;
pub use objects::objects;
use split::Document;
use split::split;

/// Reads a file, or standard input where its name is `-`.
pub fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin().lock())
            .context("reading the manifests from standard input failed");
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("reading the manifests from {} failed", path.display()))
}

/// A stream in which documents can be changed.
#[derive(Debug)]
pub struct Stream<'a> {
    /// Each with its value, where it has more than comments.
    documents: Vec<(Document<'a>, Option<Value>)>,
}

impl<'a> Stream<'a> {
    /// Parses every document, so that a mistake in the last one is known before
    /// anything is done about the first.
    pub fn parse(text: &'a str) -> anyhow::Result<Self> {
        let documents = split(text)
            .into_iter()
            .map(|document| Ok((document, parse(&document)?)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { documents })
    }

    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.documents
            .iter()
            .filter_map(|(_, value)| value.as_ref())
    }

    /// Leaves out the documents that are not wanted, and those that hold only
    /// comments.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&Value) -> bool) {
        self.documents
            .retain(|(_, value)| value.as_ref().is_some_and(&mut is_wanted));
    }

    /// The stream with values changed by `edit`, which is also told where each
    /// one is and returns whether it changed it.
    pub fn edited(
        mut self,
        mut edit: impl FnMut(&str, &mut Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<String> {
        let mut text = String::new();
        for (document, value) in &mut self.documents {
            let is_changed = match value {
                Some(value) => edit(&document.place(), value)?,
                None => false,
            };
            match value {
                Some(value) if is_changed => text.push_str(&write(document, value)?),
                _ => text.push_str(document.text),
            }
        }
        Ok(text)
    }
}

/// The value of a document; nothing where it holds only comments.
fn parse(document: &Document<'_>) -> anyhow::Result<Option<Value>> {
    if !document.has_content() {
        return Ok(None);
    }
    if document.is_json {
        let value = serde_json::from_str(document.body())
            .with_context(|| format!("reading {} as JSON failed", document.place()))?;
        return Ok(Some(value));
    }
    let value = yaml(document.text).or_else(|_| {
        // Again, as far down as the document stands in the stream, so that the
        // error has the line that an editor shows.
        let lines = "\n".repeat(document.first_line - 1);
        yaml(&format!("{lines}{}", document.text)).map_err(|error| bad_yaml(document, &error))
    })?;
    Ok(Some(value))
}

/// What is wrong with a document, and what is probably meant.
fn bad_yaml(document: &Document<'_>, error: &serde_saphyr::Error) -> anyhow::Error {
    let problem = match error {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => format!(
            "line {}: the key {} is there twice",
            location.line(),
            key.as_deref().unwrap_or_default()
        ),
        error => error.to_string(),
    };
    let number = document.number;
    if document.text.contains("{{") {
        anyhow!(
            "reading document {number} as YAML failed: {problem}; it looks like a template: render \
             it first, with `helm template` for instance"
        )
    } else {
        anyhow!("reading document {number} as YAML failed: {problem}")
    }
}

/// Reads YAML as kubectl does: `0644` is an octal number and `yes` a boolean. A
/// key that is there twice is an error, because nobody knows which one counts.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: 2_000_000,
            max_events: 8_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// A changed document. What stood before its first line of content stays: the
/// separator, and a heading in comments.
fn write(document: &Document<'_>, value: &Value) -> anyhow::Result<String> {
    let mut text = document.heading().to_owned();
    if document.is_json {
        let is_pretty = document.body().contains('\n');
        text.push_str(&if is_pretty {
            serde_json::to_string_pretty(value)?
        } else {
            serde_json::to_string(value)?
        });
        text.push_str(document.tail());
        return Ok(text);
    }
    // Long lines are not folded: what reads folded text differs in detail.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)
        .with_context(|| format!("writing {} failed", document.place()))?;
    Ok(text)
}

#[cfg(test)]
mod tests;
