//! The numbers of `linux/netfilter/nf_tables.h` and `nfnetlink.h` that are used
//! here, under names close to theirs.

/// `nfnetlink`'s subsystem nf_tables.
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// A family that is IPv4 and IPv6.
pub(super) const NFPROTO_INET: u8 = 1;

pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;

/// Messages of nf_tables.
pub(super) mod message {
    use super::NFNL_SUBSYS_NFTABLES;

    const fn of(number: u16) -> u16 {
        NFNL_SUBSYS_NFTABLES << 8 | number
    }
    pub(in crate::netlink) const NEWTABLE: u16 = of(0);
    pub(in crate::netlink) const GETTABLE: u16 = of(1);
    pub(in crate::netlink) const DELTABLE: u16 = of(2);
    pub(in crate::netlink) const NEWCHAIN: u16 = of(3);
    pub(in crate::netlink) const GETCHAIN: u16 = of(4);
    pub(in crate::netlink) const NEWRULE: u16 = of(6);
    pub(in crate::netlink) const GETRULE: u16 = of(7);
    pub(in crate::netlink) const NEWSET: u16 = of(9);
    pub(in crate::netlink) const GETSET: u16 = of(10);
    pub(in crate::netlink) const NEWSETELEM: u16 = of(12);
    pub(in crate::netlink) const GETSETELEM: u16 = of(13);
}

/// Flags of a netlink message.
pub(super) mod flag {
    pub(in crate::netlink) const REQUEST: u16 = 1;
    pub(in crate::netlink) const ACK: u16 = 4;
    /// The dump was changed by somebody while it was read.
    pub(in crate::netlink) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(in crate::netlink) const DUMP: u16 = 0x300;
    pub(in crate::netlink) const CREATE: u16 = 0x400;
    pub(in crate::netlink) const APPEND: u16 = 0x800;
    /// An error has attributes that explain it.
    pub(in crate::netlink) const ACK_ATTRIBUTES: u16 = 0x200;
}

/// Types of netlink messages that are not nf_tables'.
pub(super) const NLMSG_NOOP: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

pub(super) const NLMSGERR_ATTR_MSG: u16 = 1;
pub(super) const NLMSGERR_ATTR_OFFS: u16 = 2;

/// The table that something is in has this number in every message.
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
pub(super) const HOOK_PREROUTING: u32 = 0;
pub(super) const HOOK_OUTPUT: u32 = 3;
/// Where destinations are changed, among the chains of a hook.
pub(super) const PRIORITY_DSTNAT: i32 = -100;
pub(super) const NF_ACCEPT: u32 = 1;

pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_ID: u16 = 10;
pub(super) const NFT_SET_INTERVAL: u32 = 4;

pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(super) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
/// The type of a comment in a rule's user data, as nft writes and shows it.
pub(super) const USERDATA_COMMENT: u8 = 0;
