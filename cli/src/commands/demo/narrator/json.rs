//! One object a line, for programs.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::Narrator;
use crate::commands::demo::story::{Step, Told};

#[derive(Serialize)]
struct Line<'a> {
    step: &'a str,
    ok: bool,
    detail: &'a str,
    ms: u64,
}

/// Writes each step when it is over, and nothing else.
pub(in crate::commands::demo) struct Json<W> {
    output: W,
}

impl<W: Write> Json<W> {
    pub(in crate::commands::demo) fn new(output: W) -> Self {
        Self { output }
    }
}

impl<W: Write> Narrator for Json<W> {
    fn opening(&mut self, _steps: &[Step]) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self, _number: usize, _of: usize, _step: &Step) -> io::Result<()> {
        Ok(())
    }

    fn tick(&mut self, _elapsed: Duration, _progress: &str) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, told: &Told) -> io::Result<()> {
        let line = Line {
            step: told.step,
            ok: told.ok,
            detail: &told.detail,
            ms: told.milliseconds(),
        };
        let line = serde_json::to_string(&line)?;
        writeln!(self.output, "{line}")?;
        self.output.flush()
    }

    fn closing(&mut self, _told: &[Told]) -> io::Result<()> {
        Ok(())
    }

    /// Standard output belongs to the program that reads it.
    fn aside(&mut self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }
}
