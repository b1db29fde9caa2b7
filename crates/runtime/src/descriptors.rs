//! How many files and connections this process may have open.
//!
//! Two limits hold: the soft one, which the kernel enforces, and the hard one, up
//! to which a process may raise it. Shells and container runtimes often leave the
//! soft one at 1,024, for programs that use `select(2)`; none of ours does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors (RLIMIT_NOFILE) to the hard one, and
/// returns how many may be open now.
///
/// Where raising fails, which no kernel does without a policy that forbids it
/// (seccomp), the limit stays what it was, and the log says so: a process with
/// room for fewer connections is better than none.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return number(current);
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            let (from, to) = (number(current), number(maximum));
            tracing::debug!(from, to, "raised the limit of open descriptors");
            to
        }
        Err(error) => {
            let (limit, hard) = (number(current), number(maximum));
            tracing::warn!(
                %error,
                limit,
                hard,
                "raising the limit of open descriptors to the hard one failed; does a seccomp profile forbid setrlimit?"
            );
            limit
        }
    }
}

/// Nothing is no limit.
fn number(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        // Enough for the tests beside this one.
        let lower = before.maximum.map_or(1024, |hard| hard.min(1024));
        let lower = Rlimit {
            current: Some(lower),
            ..before
        };
        setrlimit(Resource::Nofile, lower).unwrap();
        assert_eq!(raise_limit(), number(before.maximum));
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, before.maximum);
        assert_eq!(raise_limit(), number(before.maximum), "and stays there");
    }
}
