//! PEM (RFC 7468), as people's files have it: text before, between and after
//! the blocks is ignored, as are blank lines, byte order marks and the kind of
//! line ending.
//!
//! Decoded bytes may be a private key, so they are wiped when dropped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

pub const CERTIFICATE: &str = "CERTIFICATE";
pub const CERTIFICATE_REQUEST: &str = "CERTIFICATE REQUEST";
pub const PRIVATE_KEY: &str = "PRIVATE KEY";

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
const LINE_LENGTH: usize = 64;

/// How a block of the old form begins that is encrypted (RFC 1421, 4.6.1.1).
const PROCESSING: &str = "Proc-Type:";

/// What some editors begin a file with, so that joined files have it anywhere.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// One block of a PEM text.
pub struct Block {
    /// What the block says that it is, such as `CERTIFICATE`.
    pub label: String,
    pub der: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}, {} bytes)", self.label, self.der.len())
    }
}

/// Reads all blocks of a text of at most `limit` bytes.
pub fn decode(text: &str, limit: usize) -> Result<Vec<Block>, PemError> {
    if text.len() > limit {
        return Err(PemError::TooLong { limit });
    }
    let mut blocks = Vec::new();
    let lines = text.lines();
    let mut lines = lines.map(|line| line.trim_start_matches(BYTE_ORDER_MARK).trim());
    while let Some(line) = lines.next() {
        let Some(label) = boundary(line, BEGIN) else {
            continue;
        };
        let mut body = Zeroizing::new(String::with_capacity(text.len()));
        loop {
            let line = lines.next().ok_or_else(|| PemError::Cut(shown(label)))?;
            match boundary(line, END) {
                Some(end) if end == label => break,
                Some(_) => return Err(PemError::Cut(shown(label))),
                None if line.starts_with(PROCESSING) && line.ends_with("ENCRYPTED") => {
                    return Err(PemError::Encrypted(shown(label)));
                }
                None => body.push_str(line),
            }
        }
        let der = STANDARD
            .decode(body.as_bytes())
            .map_err(|_| PemError::Base64(shown(label)))?;
        blocks.push(Block {
            label: label.to_owned(),
            der: Zeroizing::new(der),
        });
    }
    Ok(blocks)
}

/// Writes one block, with a line feed at its end.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let lines = body.len().div_ceil(LINE_LENGTH);
    let length = body.len() + lines + 2 * (label.len() + BEGIN.len() + DASHES.len() + 1);
    let mut text = Zeroizing::new(String::with_capacity(length));
    text.push_str(BEGIN);
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(LINE_LENGTH.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(END);
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The label of a line that begins or ends a block.
fn boundary<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.strip_prefix(marker)?.strip_suffix(DASHES)
}

/// A label as it goes into a message; a hostile one may be very long.
pub(crate) fn shown(label: &str) -> String {
    label.chars().take(64).collect()
}

/// Why a text is not PEM.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemError {
    #[error("the PEM text is longer than the {limit} bytes that are accepted")]
    TooLong { limit: usize },
    #[error("the PEM block {0:?} has no END line of its own: the text was probably cut")]
    Cut(String),
    #[error("the PEM block {0:?} is not base64: the text was probably damaged in copying")]
    Base64(String),
    #[error(
        "the PEM block {0:?} is encrypted, and nobody can type a passphrase here: write it without one (`openssl pkey -in FILE -out NEWFILE`)"
    )]
    Encrypted(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_at_every_length() {
        for length in 0..200 {
            let der: Vec<u8> = (0..length).collect();
            let text = encode("X", &der);
            assert!(text.lines().all(|line| line.len() <= LINE_LENGTH));
            let blocks = decode(&text, 1000).unwrap();
            assert_eq!(blocks.len(), 1);
            assert_eq!(blocks[0].label, "X");
            assert_eq!(*blocks[0].der, der);
        }
    }

    #[test]
    fn comments_blank_lines_and_windows_line_ends_do_no_harm() {
        let text = "\u{feff}# my root\r\n\r\n-----BEGIN A-----\r\nAAAA\r\n\r\n-----END A-----\r\n\
                    \u{feff}subject=x\n  -----BEGIN B-----\n  BBBB\n  -----END B-----   \n\n\n";
        let blocks = decode(text, 1000).unwrap();
        let labels: Vec<_> = blocks.iter().map(|block| block.label.as_str()).collect();
        assert_eq!(labels, ["A", "B"]);
    }

    #[test]
    fn a_text_that_was_cut_damaged_or_blown_up_is_refused() {
        for (text, problem) in [
            ("-----BEGIN A-----\nAAAA\n", PemError::Cut("A".into())),
            (
                "-----BEGIN A-----\nAAAA\n-----END B-----\n",
                PemError::Cut("A".into()),
            ),
            (
                "-----BEGIN A-----\n!\n-----END A-----",
                PemError::Base64("A".into()),
            ),
            (
                "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: X,00\n\nAAAA\n-----END A-----",
                PemError::Encrypted("A".into()),
            ),
        ] {
            assert_eq!(decode(text, 1000).unwrap_err(), problem);
        }
        assert_eq!(
            decode(&"x".repeat(11), 10).unwrap_err(),
            PemError::TooLong { limit: 10 }
        );
        assert!(decode("nothing of the kind", 100).unwrap().is_empty());
    }
}
