//! "Did you mean": the name that somebody probably meant.

use super::TABLE;

/// The name of the table that is most like this one, where any is like it at
/// all. A name of Bulkhead's own is preferred over another mesh's.
pub fn suggest(name: &str) -> Option<&'static str> {
    let wanted = essence(name);
    if wanted.is_empty() || wanted.len() > MAX_LENGTH {
        return None;
    }
    let own = TABLE.iter().map(|row| row.name);
    let foreign = TABLE
        .iter()
        .flat_map(|row| row.compatible.iter().map(|other| other.name));
    own.chain(foreign)
        .map(|candidate| (distance(&wanted, &essence(candidate)), candidate))
        .filter(|(distance, _)| *distance <= (wanted.len() / 3).max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The longest name that is compared; the time grows with its length.
const MAX_LENGTH: usize = 64;

/// What distinguishes a name: without its prefix, in one spelling of words.
fn essence(name: &str) -> Vec<u8> {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.bytes()
        .filter(u8::is_ascii_alphanumeric)
        .map(|byte| byte.to_ascii_lowercase())
        .collect()
}

/// How many insertions, removals and replacements lead from one to the other
/// (Levenshtein), by the row-at-a-time method.
fn distance(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, b) in to.iter().enumerate() {
            let replace = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replace.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_single_changes() {
        for (from, to, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("limit", "limits", 1),
        ] {
            assert_eq!(distance(from.as_bytes(), to.as_bytes()), expected);
        }
    }

    #[test]
    fn a_slip_finds_the_name_that_was_meant() {
        for (written, meant) in [
            ("bulkhead.io/proxy-cpu-limt", "bulkhead.io/proxy-cpu-limit"),
            (
                "bulkhead.io/proxy_memory_limit",
                "bulkhead.io/proxy-memory-limit",
            ),
            ("bulkhead.io/proxyCpuLimit", "bulkhead.io/proxy-cpu-limit"),
            ("mtls-mode", "bulkhead.io/mtls-mode"),
            ("bulkhead.io/mtlsmod", "bulkhead.io/mtls-mode"),
            (
                "sidecar.istio.io/proxyMemry",
                "sidecar.istio.io/proxyMemory",
            ),
        ] {
            assert_eq!(suggest(written), Some(meant), "{written}");
        }
    }

    #[test]
    fn nothing_is_suggested_for_what_is_like_nothing() {
        assert_eq!(suggest("bulkhead.io/colour-of-the-bikeshed"), None);
        assert_eq!(suggest("/"), None);
        assert_eq!(suggest(&"x".repeat(100_000)), None);
    }
}
