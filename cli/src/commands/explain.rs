//! `bulkhead explain [NAME]`: the annotations, from the table that also reads
//! them.

use std::io::Write;

use anyhow::bail;
use bulkhead_core::annotation;
use bulkhead_core::annotation::Annotation;
use clap::Args;

/// Say what an annotation does and what may be written in it.
#[derive(Debug, Args)]
pub struct Explain {
    /// The annotation, with or without bulkhead.io/, or Istio's or Linkerd's
    /// name of it; all of them where there is none
    name: Option<String>,
    /// Print the page docs/annotations.md
    #[arg(long, conflicts_with = "name")]
    markdown: bool,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = match self.name {
            None if self.markdown => annotation::markdown(),
            None => table(),
            Some(name) => entry(find(&name)?),
        };
        Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
    }
}

/// The row of this name, which may lack what stands before its slash.
pub(super) fn find(name: &str) -> anyhow::Result<&'static Annotation> {
    let is_meant = |full: &str| {
        full.rsplit_once('/')
            .is_some_and(|(_, short)| short == name)
    };
    let by_short_name = || {
        annotation::TABLE.iter().find(|row| {
            is_meant(row.name) || row.compatible.iter().any(|other| is_meant(other.name))
        })
    };
    match annotation::find(name).or_else(by_short_name) {
        Some(row) => Ok(row),
        None => match annotation::suggest(name) {
            Some(suggestion) => bail!(
                "there is no annotation {name:?}; did you mean {suggestion}? `bulkhead explain` \
                 lists all there are"
            ),
            None => {
                bail!("there is no annotation {name:?}; `bulkhead explain` lists all there are")
            }
        },
    }
}

/// A line for each annotation.
fn table() -> String {
    let heading = ("ANNOTATION", "DEFAULT".to_owned(), "ALLOWED");
    let rows = annotation::TABLE
        .iter()
        .map(|row| (row.name, annotation::default_text(row), row.allowed));
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    let width = |length: fn(&(&str, String, &str)) -> usize| rows.iter().map(length).max();
    let first = width(|row| row.0.len()).unwrap_or_default();
    let second = width(|row| row.1.len()).unwrap_or_default();
    let mut text = String::new();
    for (name, default, allowed) in &rows {
        text.push_str(&format!("{name:first$}  {default:second$}  {allowed}\n"));
    }
    text.push_str("\n`bulkhead explain NAME` says more of one of them.\n");
    text
}

/// All that is known of one annotation.
fn entry(row: &Annotation) -> String {
    let mut text = format!(
        "{}\n\n{}\n\nallowed:  {}\ndefault:  {}\nexample:  {}: \"{}\"\n",
        row.name,
        wrapped(row.doc),
        row.allowed,
        annotation::default_text(row),
        row.name,
        row.example,
    );
    for (index, other) in row.compatible.iter().enumerate() {
        let heading = if index == 0 { "also as:" } else { "" };
        text.push_str(&format!("{heading:10}{}\n", other.name));
    }
    text
}

/// Breaks lines between words, for a terminal of the usual width.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 80;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
