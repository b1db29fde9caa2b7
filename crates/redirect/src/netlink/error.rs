//! What a refusal of the kernel means, for whoever has to mend it.

use std::io;

use super::attribute::Malformed;
use super::batch::Purpose;
use super::reply::Refusal;

/// EPERM: the thread has no NET_ADMIN in the user namespace of its network.
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// Why the rules could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "opening a netlink socket to netfilter failed: {0}; the kernel needs netfilter \
         (CONFIG_NETFILTER_NETLINK, module nfnetlink), and a seccomp profile must allow \
         sockets of the family AF_NETLINK, as the container runtime's default one does"
    )]
    Open(#[source] io::Error),
    #[error("sending {NAME_OF_WORK} to the kernel failed: {0}")]
    Send(#[source] io::Error),
    #[error("receiving the kernel's answer failed: {0}")]
    Receive(#[source] io::Error),
    #[error(
        "the kernel did not answer, although it took the message; is this Linux, or something that resembles it?"
    )]
    NoAnswer,
    #[error(
        "reading the rules failed: others changed rules each time, and it was tried several times"
    )]
    Interrupted,
    #[error("the table `inet bulkhead` is not one of ours: {0}")]
    Foreign(#[from] Malformed),
    /// The kernel said no; nothing was changed.
    #[error("{what} failed, and nothing was changed: {reason}")]
    Refused {
        what: String,
        /// The number of `errno.h`.
        errno: i32,
        reason: String,
    },
}

const NAME_OF_WORK: &str = "the rules";

impl Error {
    pub(super) fn refused(refusal: &Refusal, purpose: Option<&Purpose>) -> Self {
        let expression = purpose
            .zip(refusal.offset)
            .and_then(|(purpose, offset)| purpose.expression_at(offset));
        let what = purpose.map_or("reading the rules", |purpose| &purpose.what);
        let mut reason = io::Error::from_raw_os_error(refusal.errno).to_string();
        if let Some(text) = &refusal.text {
            reason = format!("{reason}: {text}");
        }
        if let Some(expression) = expression {
            reason = format!("{reason}, at the expression `{expression}`");
        }
        if let Some(advice) = advice(refusal.errno, what, expression) {
            reason = format!("{reason}; {advice}");
        }
        Self::Refused {
            what: what.to_owned(),
            errno: refusal.errno,
            reason,
        }
    }
}

/// The likely cause, and what to do.
fn advice(errno: i32, what: &str, expression: Option<&str>) -> Option<String> {
    const NO_NF_TABLES: &str = "the kernel has no nf_tables (CONFIG_NF_TABLES and \
         CONFIG_NF_TABLES_INET, Linux 5.2 or later; module nf_tables): load the module on \
         the node, `modprobe nf_tables`";
    let module = |module: &str, option: &str| {
        Some(format!(
            "the kernel lacks a part of nf_tables ({option}, module {module}) and could not load \
             it: load it on the node, `modprobe {module}`"
        ))
    };
    let may_be_missing = errno == ENOENT || errno == EOPNOTSUPP;
    match (errno, expression) {
        (EPERM, _) => Some(
            "NET_ADMIN is needed in the network namespace of the pod, and the table must not \
             belong to another program (flag `owner`)"
                .to_owned(),
        ),
        (_, Some("redir")) if may_be_missing => module("nft_redir", "CONFIG_NFT_REDIR"),
        (_, Some("fib")) if may_be_missing => module("nft_fib_inet", "CONFIG_NFT_FIB_INET"),
        (_, Some("counter")) if may_be_missing => module("nft_counter", "CONFIG_NFT_COUNTER"),
        (_, None) if may_be_missing && what.starts_with("adding the chain") => module(
            "nft_chain_nat",
            "CONFIG_NFT_NAT and, for both families in one chain, Linux 5.2 or later",
        ),
        (_, None) if may_be_missing && what.starts_with("adding the set") => {
            module("nf_tables_set", "sets of intervals")
        }
        (EINVAL | EOPNOTSUPP, None) if what.starts_with("reading") => Some(NO_NF_TABLES.to_owned()),
        (EINVAL | EOPNOTSUPP, None) if what.ends_with("the table") => Some(NO_NF_TABLES.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let nat = "adding the chain output";
        let rule = "adding rule 9 of chain output (to the proxy)";
        for (errno, what, expression, named) in [
            (EPERM, "adding the table", None, "NET_ADMIN"),
            (ENOENT, nat, None, "nft_chain_nat"),
            (ENOENT, rule, Some("redir"), "nft_redir"),
            (ENOENT, rule, Some("fib"), "nft_fib_inet"),
            (EINVAL, "reading the rules", None, "modprobe nf_tables"),
            (EOPNOTSUPP, "removing the table", None, "CONFIG_NF_TABLES"),
        ] {
            let advice = advice(errno, what, expression).unwrap();
            assert!(advice.contains(named), "{advice}");
        }
        // A set that is not there is a mistake of ours, and no module helps.
        assert_eq!(advice(ENOENT, rule, Some("lookup")), None);
    }
}
