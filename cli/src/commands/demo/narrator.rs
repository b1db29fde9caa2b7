//! Who tells the story: [`Text`] for people, [`Json`] for programs.

use std::io;
use std::time::Duration;

mod json;
mod text;

pub(super) use json::Json;
pub(super) use text::Text;

use super::story::{Step, Told};

/// Tells the story as it happens. What is of no use to its audience it leaves out.
pub(super) trait Narrator {
    fn opening(&mut self, steps: &[Step]) -> io::Result<()>;

    fn begin(&mut self, number: usize, of: usize, step: &Step) -> io::Result<()>;

    /// A step is still running.
    fn tick(&mut self, elapsed: Duration, progress: &str) -> io::Result<()>;

    fn end(&mut self, told: &Told) -> io::Result<()>;

    fn closing(&mut self, told: &[Told]) -> io::Result<()>;

    /// Something for the person at the keyboard, after the story.
    fn aside(&mut self, text: &str) -> io::Result<()>;
}
