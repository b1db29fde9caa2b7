//! What may happen to a mesh.

use std::time::Duration;

/// What a CA above may do.
#[derive(Clone, Debug)]
pub(crate) enum Above {
    /// It signs under a new root.
    Another,
    /// It signs under the root before again.
    Back,
    /// Somebody says that it signs otherwise, though it does not.
    Rumour,
    /// Whether it names the root before beside the one that signs.
    Both(bool),
    /// Whether it does not answer.
    Away(bool),
    /// How long it takes to answer.
    Delay(Duration),
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Pass(Duration),
    /// Orders the next root.
    Rotate,
    /// Orders the root that signs now.
    Undo,
    Order(u64),
    Force(u64),
    /// Takes the order away.
    Withdraw,
    Join(u8),
    Leave(u8),
    /// Another replica leads.
    Lead(u8),
    Restart(u8),
    /// A replica's clock leaps, by seconds.
    Leap(u8, i64),
    RightClock(u8),
    /// A workload's file does not reach it any more.
    Deaf(u8),
    Hear(u8),
    /// Whether anybody reports what workloads hold.
    Reports(bool),
    /// For how long a report is under way.
    Delay(Duration),
    /// Whether the order can be read.
    Orders(bool),
    /// The CA above does something, where there is one.
    Upstream(Above),
}
