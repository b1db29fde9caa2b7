//! How far a rotation is, for people: a bar that moves on a terminal, and lines
//! that stay wherever the output is kept.

use std::io::{self, Write};

use bulkhead_crds::certificate_authority::MissingProxy;

use super::rotation::{Goal, Known, Progress, Step};

/// Missing proxies that are named at a time.
const NAMED: usize = 5;
const BAR: usize = 24;

/// Writes what changed.
pub(crate) struct Screen<W> {
    out: W,
    is_terminal: bool,
    /// The last step that was written to stay.
    step: Option<Step>,
    /// The line that may still change, as it was written.
    line: String,
}

impl<W: Write> Screen<W> {
    pub(crate) fn new(out: W, is_terminal: bool) -> Self {
        Self {
            out,
            is_terminal,
            step: None,
            line: String::new(),
        }
    }

    /// Shows how far it is, if that is news.
    pub(crate) fn show(&mut self, progress: &Progress) -> io::Result<()> {
        let milestones = milestones(self.step, progress);
        if !milestones.is_empty() {
            self.clear()?;
        }
        for milestone in milestones {
            writeln!(self.out, "{milestone}")?;
        }
        self.step = Some(progress.step);
        let line = activity(progress);
        if line == self.line || progress.step == Step::Done {
            return self.out.flush();
        }
        if self.is_terminal {
            self.clear()?;
            write!(self.out, "{line}")?;
        } else {
            writeln!(self.out, "{line}")?;
        }
        self.line = line;
        self.out.flush()
    }

    /// Leaves the terminal as other output wants it.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        if self.is_terminal && !self.line.is_empty() {
            write!(self.out, "\r\x1b[K")?;
            self.line.clear();
        }
        self.out.flush()
    }
}

/// What has been reached since, a line each, in the order of the steps.
fn milestones(last: Option<Step>, progress: &Progress) -> Vec<String> {
    let Goal { root, is_undo } = progress.goal;
    let reached = |step: Step| progress.step > step && last.is_none_or(|last| last <= step);
    let mut lines = Vec::new();
    if reached(Step::Asked) {
        let what = if is_undo {
            "is to sign again"
        } else {
            "is there"
        };
        lines.push(format!("ok  root {root} {what}"));
    }
    if reached(Step::Publishing) {
        let is_held = !progress.is_forced || progress.proxies.are_all_holding();
        lines.push(if is_held {
            format!("ok  held: proxies trust root {root}")
        } else {
            format!("ok  forced: not every proxy trusts root {root}")
        });
    }
    if reached(Step::Switching) {
        lines.push(format!("ok  root {root} signs"));
    }
    if reached(Step::Renewing) {
        lines.push(format!("ok  certificates are below root {root}"));
    }
    if reached(Step::Retiring) {
        lines.push("ok  the other root is retired, and its key destroyed".to_owned());
    }
    lines
}

/// What goes on now, on one line.
fn activity(progress: &Progress) -> String {
    let Goal { root, .. } = progress.goal;
    let counted = |done: u32, what: &str| match &progress.proxies {
        Known::Nothing => format!(
            "..  {what}: not known of any proxy yet{}",
            said(progress.message.as_deref())
        ),
        Known::Said {
            total,
            missing,
            stale_since,
            ..
        } => {
            let stale = stale_since.as_ref().map_or_else(String::new, |since| {
                format!(" (control said so {since}: is it running?)")
            });
            format!(
                "..  {what}: {} {done} of {total}{stale}{}",
                bar(done, *total),
                names(missing)
            )
        }
    };
    match (progress.step, &progress.proxies) {
        (Step::Asked, _) => format!("..  root {root} was asked for; waiting for the CA"),
        (Step::Publishing, Known::Said { holding, .. }) => {
            counted(*holding, &format!("proxies that hold root {root}"))
        }
        (Step::Publishing, Known::Nothing) => counted(0, &format!("proxies that hold root {root}")),
        (Step::Switching, _) => format!("..  root {root} begins to sign"),
        (Step::Renewing, Known::Said { renewed, .. }) => {
            counted(*renewed, &format!("certificates below root {root}"))
        }
        (Step::Renewing, Known::Nothing) => counted(0, &format!("certificates below root {root}")),
        (Step::Retiring, _) => "..  the other root leaves the trust bundle".to_owned(),
        (Step::Done, _) => format!("ok  root {root} signs alone"),
    }
}

fn said(message: Option<&str>) -> String {
    message.map_or_else(String::new, |message| format!(" ({message})"))
}

fn bar(done: u32, total: u32) -> String {
    let part = f64::from(done) / f64::from(total.max(1));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a bar of a few characters"
    )]
    let full = ((part * BAR as f64) as usize).min(BAR);
    let full = if total == 0 { BAR } else { full };
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR - full))
}

fn names(missing: &[MissingProxy]) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let named: Vec<_> = missing
        .iter()
        .take(NAMED)
        .map(|proxy| format!("{} ({})", proxy.pod, proxy.reason))
        .collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("; not yet {}{more}", named.join(", "))
}

/// A proxy or so many proxies.
pub(crate) fn proxies(count: u32) -> String {
    match count {
        1 => "1 proxy".to_owned(),
        count => format!("{count} proxies"),
    }
}

/// Who would be cut off, a line each.
pub(crate) fn write_missing(out: &mut impl Write, proxies: &Known) -> io::Result<()> {
    let missing = proxies.missing();
    for proxy in missing {
        writeln!(out, "    {}: {}", proxy.pod, proxy.reason)?;
    }
    let lacking = usize::try_from(proxies.lacking()).unwrap_or(usize::MAX);
    let unnamed = lacking.saturating_sub(missing.len());
    if unnamed > 0 {
        writeln!(out, "    and {unnamed} more")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: Step, holding: u32, renewed: u32, missing: &[&str]) -> Progress {
        let missing = missing.iter().map(|pod| MissingProxy {
            pod: (*pod).to_owned(),
            reason: "it holds the bundle of before".to_owned(),
        });
        Progress {
            goal: Goal {
                root: 2,
                is_undo: false,
            },
            step,
            message: None,
            is_forced: false,
            proxies: Known::Said {
                total: 4,
                holding,
                renewed,
                missing: missing.collect(),
                stale_since: None,
            },
        }
    }

    fn shown(is_terminal: bool, all: &[Progress]) -> String {
        let mut screen = Screen::new(Vec::new(), is_terminal);
        for progress in all {
            screen.show(progress).unwrap();
        }
        String::from_utf8(screen.out).unwrap()
    }

    #[test]
    fn each_step_is_a_line_where_the_output_is_kept_and_nothing_is_said_twice() {
        let story = [
            progress(Step::Publishing, 3, 0, &["shop/cart"]),
            progress(Step::Publishing, 3, 0, &["shop/cart"]),
            progress(Step::Renewing, 4, 1, &[]),
            progress(Step::Done, 4, 4, &[]),
        ];
        assert_eq!(
            shown(false, &story),
            "ok  root 2 is there\n\
             ..  proxies that hold root 2: [##################------] 3 of 4; not yet shop/cart \
             (it holds the bundle of before)\n\
             ok  held: proxies trust root 2\n\
             ok  root 2 signs\n\
             ..  certificates below root 2: [######------------------] 1 of 4\n\
             ok  certificates are below root 2\n\
             ok  the other root is retired, and its key destroyed\n"
        );
    }

    #[test]
    fn what_was_forced_is_not_said_to_be_held() {
        let forced = |holding| Progress {
            is_forced: true,
            ..progress(Step::Renewing, holding, 1, &[])
        };
        let before = progress(Step::Publishing, 3, 0, &["shop/cart"]);
        let text = shown(false, &[before.clone(), forced(3)]);
        assert!(
            text.contains("ok  forced: not every proxy trusts root 2"),
            "{text}"
        );
        assert!(!text.contains("held"), "{text}");
        let text = shown(false, &[before, forced(4)]);
        assert!(text.contains("ok  held: proxies trust root 2"), "{text}");
    }

    #[test]
    fn on_a_terminal_the_bar_moves_in_its_place() {
        let story = [
            progress(Step::Publishing, 1, 0, &[]),
            progress(Step::Publishing, 2, 0, &[]),
        ];
        let text = shown(true, &story);
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(
            text.contains("\r\x1b[K..  proxies that hold root 2"),
            "{text:?}"
        );
    }

    #[test]
    fn everybody_who_would_be_cut_off_is_named_or_counted() {
        let Progress { proxies, .. } = progress(Step::Publishing, 1, 0, &["shop/cart"]);
        let mut out = Vec::new();
        write_missing(&mut out, &proxies).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "    shop/cart: it holds the bundle of before\n    and 2 more\n"
        );
    }

    #[test]
    fn many_missing_proxies_are_not_all_on_one_line() {
        let many: Vec<_> = (0..100).map(|number| format!("a/{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let line = activity(&progress(Step::Publishing, 0, 0, &many));
        assert!(line.ends_with(" and 95 more"), "{line}");
    }
}
