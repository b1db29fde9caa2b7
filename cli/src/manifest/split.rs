//! Where the documents of a stream begin and end, by the markers of YAML 1.2,
//! 9.1.4: a `---` or `...` at the start of a line is never part of a document's
//! content, whatever quotes or block it stands in.

use serde::de::IgnoredAny;

/// One document, with everything up to the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    /// All of its text: the marker, comments, the content.
    pub(super) text: &'a str,
    /// Where its content starts in `text`.
    body_at: usize,
    /// Where its content ends in `text`, where that is known.
    body_end: usize,
    /// Whether its marker has content on the same line.
    is_inline: bool,
    /// Whether the content is written as JSON.
    pub(super) is_json: bool,
    /// Its number in the stream, from 1, counting those that hold something.
    pub(super) number: usize,
    /// The line of the stream on which its text starts, from 1.
    pub(super) first_line: usize,
}

impl<'a> Document<'a> {
    /// Whether there is anything but comments.
    pub(super) fn has_content(&self) -> bool {
        self.body_at < self.text.len()
    }

    pub(super) fn body(&self) -> &'a str {
        &self.text[self.body_at..self.body_end]
    }

    /// What stands before the content.
    pub(super) fn heading(&self) -> &'a str {
        if self.is_inline {
            "---\n"
        } else {
            &self.text[..self.body_at]
        }
    }

    /// What stands behind the content.
    pub(super) fn tail(&self) -> &'a str {
        &self.text[self.body_end..]
    }

    /// Where the document is, for messages.
    pub(super) fn place(&self) -> String {
        let line = self.first_line + newlines(&self.text[..self.body_at]);
        format!("document {} (line {line})", self.number)
    }

    /// One document for each of the JSON values that follow each other in this
    /// one; nothing where the content is not JSON throughout.
    fn json_values(&self) -> Option<Vec<Self>> {
        let body = self.body();
        if !body.starts_with('{') {
            return None;
        }
        let mut values = serde_json::Deserializer::from_str(body).into_iter::<IgnoredAny>();
        let mut documents = Vec::new();
        let mut start = 0;
        while let Some(value) = values.next() {
            value.ok()?;
            let end = self.body_at + values.byte_offset();
            let text = &self.text[start..end];
            let gap = text.len() - text.trim_start().len();
            documents.push(Self {
                text,
                body_at: if start == 0 { self.body_at } else { gap },
                body_end: text.len(),
                is_inline: self.is_inline && start == 0,
                is_json: true,
                first_line: self.first_line + newlines(&self.text[..start]),
                ..*self
            });
            start = end;
        }
        let last = documents.last_mut()?;
        let last_start = start - last.text.len();
        last.text = &self.text[last_start..];
        Some(documents)
    }
}

fn newlines(text: &str) -> usize {
    text.matches('\n').count()
}

/// What a line of a stream is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Line {
    /// `---`, with or without content behind it.
    Start {
        content_at: Option<usize>,
    },
    /// `...`
    End,
    /// Blank, a comment, or a directive such as `%YAML 1.2`.
    Nothing,
    Content,
}

fn classify(line: &str, is_first: bool) -> Line {
    // A byte order mark may stand before the first character.
    let (mark, line) = match line.strip_prefix('\u{feff}') {
        Some(rest) if is_first => ('\u{feff}'.len_utf8(), rest),
        _ => (0, line),
    };
    let marker = |marker: &str| {
        line.strip_prefix(marker)
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let is_nothing = |text: &str| text.trim().is_empty() || text.trim_start().starts_with('#');
    if let Some(rest) = marker("---") {
        let content_at = mark + line.len() - rest.trim_start().len();
        return Line::Start {
            content_at: (!is_nothing(rest)).then_some(content_at),
        };
    }
    if marker("...").is_some() {
        return Line::End;
    }
    if is_nothing(line) || line.starts_with('%') {
        return Line::Nothing;
    }
    Line::Content
}

/// Splits a stream; the texts of all documents together are the stream.
pub(super) fn split(stream: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut current = Builder::default();
    let mut at = 0;
    for (index, line) in stream.split_inclusive('\n').enumerate() {
        let kind = classify(line, index == 0);
        if matches!(kind, Line::Start { .. }) && current.is_open() {
            current.finish(stream, at, index + 1, &mut documents);
        }
        current.take(kind, at, line);
        at += line.len();
        if kind == Line::End {
            current.finish(stream, at, index + 2, &mut documents);
        }
    }
    current.finish(stream, at, 0, &mut documents);
    documents
}

/// A document whose end is not known yet.
#[derive(Debug)]
struct Builder {
    start: usize,
    first_line: usize,
    body_at: Option<usize>,
    is_inline: bool,
    has_marker: bool,
    numbered: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            start: 0,
            first_line: 1,
            body_at: None,
            is_inline: false,
            has_marker: false,
            numbered: 0,
        }
    }
}

impl Builder {
    /// Whether a marker would begin another document. What stands before the
    /// first marker and holds nothing is that document's heading.
    fn is_open(&self) -> bool {
        self.has_marker || self.body_at.is_some()
    }

    fn take(&mut self, kind: Line, at: usize, line: &str) {
        match kind {
            Line::Start { content_at } => {
                self.has_marker = true;
                self.is_inline = content_at.is_some();
                self.body_at = content_at.map(|offset| at + offset);
            }
            Line::Content => {
                let mark = line.len() - line.trim_start_matches('\u{feff}').len();
                // A block that is indented as a whole is so from its first
                // character on.
                self.body_at.get_or_insert(at + mark);
            }
            Line::Nothing | Line::End => {}
        }
    }

    /// Ends the document at `end`; the next begins there, on `next_line`.
    fn finish<'a>(
        &mut self,
        stream: &'a str,
        end: usize,
        next_line: usize,
        documents: &mut Vec<Document<'a>>,
    ) {
        if end > self.start {
            let text = &stream[self.start..end];
            let document = Document {
                text,
                body_at: self.body_at.unwrap_or(end) - self.start,
                body_end: text.len(),
                is_inline: self.is_inline,
                is_json: false,
                number: 0,
                first_line: self.first_line,
            };
            let parts = document.json_values().unwrap_or_else(|| vec![document]);
            for mut part in parts {
                self.numbered += usize::from(part.has_content());
                part.number = self.numbered;
                documents.push(part);
            }
        }
        *self = Self {
            start: end,
            first_line: next_line,
            numbered: self.numbered,
            ..Self::default()
        };
    }
}
