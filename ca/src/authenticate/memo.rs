//! Remembers which tokens had a good signature.
//!
//! The same bytes under the same keys always have the same signature, so this
//! takes nothing from security: whoever remembers still checks every claim each
//! time, and forgets everything when the keys change. It saves the CA a sixth of
//! its work for callers that come again with the same token.
//!
//! A fixed number of places, found by the token's SHA-256; a later token takes
//! the place of an earlier one. Reading takes no lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};

/// Some 400 bytes each when in use.
const PLACES: usize = 4096;

/// What was found in tokens, by the tokens' digests.
pub(super) struct Memo<T> {
    places: Box<[ArcSwapOption<Entry<T>>]>,
}

struct Entry<T> {
    token: [u8; 32],
    found: Arc<T>,
}

impl<T> Memo<T> {
    pub(super) fn new() -> Self {
        Self {
            places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(),
        }
    }

    /// What was found in this token before, or what `find` finds now. Failures
    /// are not remembered: nobody can fill the places without a good token.
    pub(super) fn recall<E>(
        &self,
        token: &str,
        find: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let number = u64::from_le_bytes(std::array::from_fn(|at| key[at]));
        let number = usize::try_from(number % PLACES as u64).expect("less than the places");
        let place = &self.places[number];
        if let Some(entry) = &*place.load()
            && entry.token == key
        {
            return Ok(Arc::clone(&entry.found));
        }
        let found = Arc::new(find(token)?);
        place.store(Some(Arc::new(Entry {
            token: key,
            found: Arc::clone(&found),
        })));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_looked_into_once_and_a_failure_again_each_time() {
        let memo = Memo::new();
        let mut looked = 0;
        for _ in 0..3 {
            let found = memo.recall("good", |token| {
                looked += 1;
                Ok::<_, ()>(token.len())
            });
            assert_eq!(*found.unwrap(), 4);
        }
        assert_eq!(looked, 1);
        for _ in 0..3 {
            let found = memo.recall("bad", |_| {
                looked += 1;
                Err(())
            });
            assert!(found.is_err());
        }
        assert_eq!(looked, 4);
    }

    #[test]
    fn many_tokens_take_turns_and_none_is_taken_for_another() {
        let memo = Memo::new();
        for round in 0..2 {
            for number in 0..3 * PLACES {
                let token = number.to_string();
                let found = memo.recall(&token, |token| token.parse::<usize>());
                assert_eq!(*found.unwrap(), number, "round {round}");
            }
        }
    }
}
