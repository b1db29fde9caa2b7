//! The story for people: in colour and with signs of life at a terminal, and
//! plain where it goes to a file.

use std::io::{self, Write};
use std::time::Duration;

use super::Narrator;
use crate::commands::demo::story::{Step, Told};

/// Fits a terminal of 100 columns with room to spare.
const WIDTH: usize = 96;
const SPINNER: [&str; 8] = ["⣷", "⣯", "⣟", "⡿", "⢿", "⣻", "⣽", "⣾"];
/// Back to the beginning of the line, and clear it.
const CLEAR: &str = "\r\x1b[K";

/// Writes for people.
pub(in crate::commands::demo) struct Text<W> {
    output: W,
    has_colour: bool,
    has_activity: bool,
    ticks: usize,
}

#[derive(Clone, Copy)]
enum Style {
    Strong,
    Faint,
    Good,
    Bad,
}

impl<W: Write> Text<W> {
    /// Plain, until something else is asked for.
    pub(in crate::commands::demo) fn new(output: W) -> Self {
        Self {
            output,
            has_colour: false,
            has_activity: false,
            ticks: 0,
        }
    }

    pub(in crate::commands::demo) fn with_colour(self, has_colour: bool) -> Self {
        Self { has_colour, ..self }
    }

    /// Shows that something goes on by rewriting the last line.
    pub(in crate::commands::demo) fn with_activity(self, has_activity: bool) -> Self {
        Self {
            has_activity,
            ..self
        }
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if !self.has_colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Strong => "1",
            Style::Faint => "2",
            Style::Good => "32",
            Style::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes a paragraph under a first line that begins with `lead`.
    fn paragraph(&mut self, lead: &str, text: &str, style: Option<Style>) -> io::Result<()> {
        let indent = lead.chars().count();
        for (index, line) in wrapped(text, WIDTH - indent).iter().enumerate() {
            let line = style.map_or_else(|| line.clone(), |style| self.styled(style, line));
            if index == 0 {
                writeln!(self.output, "{lead}{line}")?;
            } else {
                writeln!(self.output, "{:indent$}{line}", "")?;
            }
        }
        Ok(())
    }

    fn table(&mut self, told: &[Told]) -> io::Result<()> {
        let name = told.iter().map(|told| told.step.len()).max().unwrap_or(0);
        let proof = WIDTH - name - "  ok  ".len() - "  123456".len();
        let head = format!(
            "{:name$}  ok  {:proof$}  {:>6}",
            "step", "what was proved", "ms"
        );
        let head = self.styled(Style::Faint, &head);
        writeln!(self.output, "{head}")?;
        for told in told {
            let mark = self.mark(told.ok);
            for (index, line) in wrapped(&told.detail, proof).iter().enumerate() {
                if index == 0 {
                    let (step, took) = (told.step, told.milliseconds());
                    let gap = proof.saturating_sub(line.chars().count());
                    writeln!(
                        self.output,
                        "{step:name$}  {mark}   {line}{:gap$}  {took:>6}",
                        ""
                    )?;
                } else {
                    writeln!(self.output, "{:name$}      {line}", "")?;
                }
            }
        }
        Ok(())
    }

    fn mark(&self, ok: bool) -> String {
        if ok {
            self.styled(Style::Good, "✓")
        } else {
            self.styled(Style::Bad, "✗")
        }
    }
}

impl<W: Write> Narrator for Text<W> {
    fn opening(&mut self, steps: &[Step]) -> io::Result<()> {
        let title = self.styled(Style::Strong, "Bulkhead, on this machine");
        writeln!(self.output, "\n{title}\n")?;
        let text = format!(
            "A webhook, a certificate authority and three sidecar proxies run in this process, on \
             free ports of loopback. The sockets, TLS, gRPC and admission reviews are real; only \
             the cluster is missing. {} steps follow, and each shows what it saw.",
            steps.len()
        );
        self.paragraph("", &text, None)?;
        self.output.flush()
    }

    fn begin(&mut self, number: usize, of: usize, step: &Step) -> io::Result<()> {
        let count = self.styled(Style::Faint, &format!("{number:>2}/{of}"));
        let name = self.styled(Style::Strong, step.name);
        writeln!(self.output, "\n{count}  {name}")?;
        self.paragraph("       ", step.title, None)?;
        self.paragraph("       ", step.why, Some(Style::Faint))?;
        self.output.flush()
    }

    fn tick(&mut self, elapsed: Duration, progress: &str) -> io::Result<()> {
        if !self.has_activity {
            return Ok(());
        }
        let spinner = SPINNER[self.ticks % SPINNER.len()];
        self.ticks += 1;
        let seconds = elapsed.as_secs_f64();
        let line = format!("     {spinner} {seconds:.1} s  {progress}");
        // A line that wraps could not be taken back.
        let line: String = line.chars().take(WIDTH).collect();
        let line = self.styled(Style::Faint, &line);
        write!(self.output, "{CLEAR}{line}")?;
        self.output.flush()
    }

    fn end(&mut self, told: &Told) -> io::Result<()> {
        if self.has_activity {
            write!(self.output, "{CLEAR}")?;
        }
        for line in &told.evidence {
            self.paragraph("       · ", line, None)?;
        }
        let lead = if told.ok { "     ✓ " } else { "     ✗ " };
        let style = if told.ok { Style::Good } else { Style::Bad };
        let text = format!("{} ({} ms)", told.detail, told.milliseconds());
        let lead = self.styled(style, lead);
        // The colour's codes take no room.
        for (index, line) in wrapped(&text, WIDTH - 7).iter().enumerate() {
            let line = self.styled(style, line);
            let lead = if index == 0 { &lead } else { "       " };
            writeln!(self.output, "{lead}{line}")?;
        }
        self.output.flush()
    }

    fn closing(&mut self, told: &[Told]) -> io::Result<()> {
        writeln!(self.output)?;
        self.table(told)?;
        let held = told.iter().filter(|told| told.ok).count();
        let seconds: f64 = told.iter().map(|told| told.took.as_secs_f64()).sum();
        let sum = format!("{held} of {} held, in {seconds:.1} s.", told.len());
        let style = if held == told.len() {
            Style::Good
        } else {
            Style::Bad
        };
        let sum = self.styled(style, &sum);
        writeln!(self.output, "\n{sum}\n\n{WHERE_NEXT}")?;
        self.output.flush()
    }

    fn aside(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.output, "\n{text}")?;
        self.output.flush()
    }
}

const WHERE_NEXT: &str = "\
Where to look next (bulkhead is cargo run --release --, or target/release/bulkhead)
  bulkhead demo --keep                       leaves all of this running, with addresses to try
  bulkhead inject -f examples/shop.yaml      shows what a manifest becomes
  bulkhead explain                           lists every annotation
  ARCHITECTURE.md                            says how it is built
  docs/outside-kubernetes.md                 sets up the programs by hand";

/// Breaks a text into lines at its spaces. A word that is longer than a line
/// stays whole, so that it can be copied.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if length > 0 {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_long_words_stay_whole() {
        assert_eq!(wrapped("", 10), [""]);
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(
            wrapped("see spiffe://cluster.local/ns/a here", 9),
            ["see", "spiffe://cluster.local/ns/a", "here"]
        );
    }

    #[test]
    fn without_colour_and_activity_nothing_but_text_is_written() {
        let told = Told {
            step: "step",
            ok: true,
            detail: "it holds".to_owned(),
            evidence: vec!["seen".to_owned()],
            took: Duration::from_millis(7),
        };
        let mut output = Vec::new();
        let mut text = Text::new(&mut output);
        text.tick(Duration::from_secs(1), "busy").unwrap();
        text.end(&told).unwrap();
        text.closing(&[told]).unwrap();
        let output = String::from_utf8(output).unwrap();
        assert!(
            !output.contains('\x1b') && !output.contains("busy"),
            "{output}"
        );
        assert!(output.contains("1 of 1 held"), "{output}");
    }

    #[test]
    fn a_table_with_long_proofs_stays_within_its_width() {
        let told = Told {
            step: "permissive-counts-plaintext",
            ok: false,
            detail: "word ".repeat(60),
            evidence: Vec::new(),
            took: Duration::from_secs(12),
        };
        let mut output = Vec::new();
        Text::new(&mut output).table(&[told]).unwrap();
        let output = String::from_utf8(output).unwrap();
        assert!(
            output.lines().all(|line| line.chars().count() <= WIDTH),
            "{output}"
        );
    }
}
