//! Waiting until programs have nothing left to do, so that what they do next is
//! the same in every run, however fast the machine is.

use std::cell::RefCell;
use std::fs::{read_dir, read_to_string};
use std::rc::Rc;

use tokio::task::yield_now;

/// How often in a row all must be found asleep: what is on its way to them from a
/// task of this thread has left then.
const LOOKS: usize = 5;

/// The programs to wait for, which may be none.
#[derive(Clone, Default)]
pub(crate) struct Stillness(Rc<RefCell<Vec<u32>>>);

impl Stillness {
    /// Waits for this process too from now on.
    pub(crate) fn follow(&self, process: u32) {
        self.0.borrow_mut().push(process);
    }

    /// Waits for none any more.
    pub(crate) fn forget(&self) {
        self.0.borrow_mut().clear();
    }

    /// Returns when each thread of all of them sleeps in the kernel.
    pub(crate) async fn reached(&self) {
        let mut looks = 0;
        while looks < LOOKS && !self.0.borrow().is_empty() {
            yield_now().await;
            let asleep = self.0.borrow().iter().all(|process| is_asleep(*process));
            looks = if asleep { looks + 1 } else { 0 };
        }
    }
}

/// Whether no thread of a process runs or could (proc(5): the state of each is
/// what follows its name).
fn is_asleep(process: u32) -> bool {
    let Ok(threads) = read_dir(format!("/proc/{process}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let stat = read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next();
        state.is_none_or(|state| !state.starts_with(['R', 'D']))
    })
}
