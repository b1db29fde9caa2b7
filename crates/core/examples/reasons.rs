//! Prints `docs/reasons.md`.

#![expect(clippy::print_stdout, reason = "printing is what this is for")]

fn main() {
    print!("{}", bulkhead_core::reason::Reason::markdown());
}
