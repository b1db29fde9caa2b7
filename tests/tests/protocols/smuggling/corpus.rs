//! The corpus: cases as people write them down.

/// One case: a message, and what must become of it.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The message, as it is written.
    pub(crate) lines: Vec<String>,
    /// What is asked for by whom it answers, where that is of interest.
    pub(crate) request: Vec<String>,
    /// What comes of it, a line each, as its file explains.
    pub(crate) expected: Vec<String>,
    /// Servers that answer otherwise for reasons of their own.
    pub(crate) except: Vec<String>,
}

/// Reads a file of cases. `#` begins a comment.
pub(crate) fn read(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (kind, rest) = line.split_at(1);
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        if kind == "=" {
            cases.push(Case {
                name: rest.to_owned(),
                ..Case::default()
            });
            continue;
        }
        let case = cases.last_mut().unwrap();
        match kind {
            ">" => case.lines.push(rest.to_owned()),
            "?" => case.request.push(rest.to_owned()),
            "<" => case.expected.push(text_of(rest)),
            "!" => case.except.push(rest.to_owned()),
            _ => panic!("a line of the corpus begins with none of = > ? < !: {line}"),
        }
    }
    cases
}

impl Case {
    /// The bytes of its lines.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line_of(line)).collect()
    }
}

/// A line of a message: with CRLF at its end, unless there is a backslash instead.
fn line_of(line: &str) -> Vec<u8> {
    match line.strip_suffix('\\') {
        Some(line) if !line.ends_with('\\') => unescaped(line),
        _ => [&unescaped(line)[..], b"\r\n"].concat(),
    }
}

fn text_of(line: &str) -> String {
    unescaped(line).into_iter().map(char::from).collect()
}

/// The bytes that `\r \n \t \0 \\ \xHH` stand for; all else is itself.
pub(crate) fn unescaped(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => panic!("an escape that is none in {line:?}: {other:?}"),
        });
    }
    bytes
}
