//! More than fits: the proxy as a process of its own, in a control group with a
//! sidecar's memory limit, under floods, beside clients that behave.
//!
//! - [`ground`]: the application, the proxy and its control group.
//! - [`attacks`]: what is done to it, over HTTP/1 and HTTP/2.
//! - [`neighbours`]: clients that behave, and what became of their requests.
//!
//! What is to hold each time: the kernel never kills the proxy; those who behave go on
//! being answered; when the attack is over everything is given back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks;
mod ground;
mod neighbours;

use attacks::Attack;
use ground::{Ground, Side};

const SMALL: u64 = 32 << 20;
const LARGE: u64 = 64 << 20;

macro_rules! withstands {
    ($($name:ident: $side:ident, $limit:expr, $attack:expr;)*) => {
        $(
            #[test]
            fn $name() {
                withstand(stringify!($name), Side::$side, $limit, &$attack);
            }
        )*
    };
}

withstands! {
    ten_thousand_idle_connections_in_32_mib: Server, SMALL, attacks::idle(10_000);
    ten_thousand_idle_connections_in_64_mib: Server, LARGE, attacks::idle(10_000);
    ten_thousand_unfinished_heads_in_32_mib: Server, SMALL, attacks::slow_heads(10_000);
    ten_thousand_unfinished_heads_in_64_mib: Server, LARGE, attacks::slow_heads(10_000);
    ten_thousand_unfinished_handshakes_in_32_mib: Server, SMALL, attacks::unfinished_handshakes(10_000);
    heads_of_a_megabyte_in_32_mib: Server, SMALL, attacks::large_heads(300);
    responses_that_nobody_reads_in_32_mib: Server, SMALL, attacks::unread_responses(2_000);
    responses_that_nobody_reads_in_64_mib: Server, LARGE, attacks::unread_responses(2_000);
    bodies_without_an_end_in_32_mib: Server, SMALL, attacks::endless_bodies(2_000);
    bodies_that_the_application_does_not_read_in_32_mib: Server, SMALL, attacks::unread_bodies(2_000);
    rapid_resets_in_32_mib: Server, SMALL, attacks::rapid_resets(100);
    settings_floods_in_32_mib: Server, SMALL, attacks::settings_flood(100);
    ping_floods_in_32_mib: Server, SMALL, attacks::ping_flood(100);
    continuation_floods_in_32_mib: Server, SMALL, attacks::continuation_flood(100);
    closed_windows_in_32_mib: Server, SMALL, attacks::closed_windows(300);
    closed_windows_in_64_mib: Server, LARGE, attacks::closed_windows(300);
    hpack_bombs_in_32_mib: Server, SMALL, attacks::hpack_bombs(100);
    a_clients_proxy_with_idle_connections_in_32_mib: Client, SMALL, attacks::idle(10_000);
    a_clients_proxy_with_unread_responses_in_32_mib: Client, SMALL, attacks::unread_responses(2_000);
    a_clients_proxy_with_unread_bodies_in_32_mib: Client, SMALL, attacks::unread_bodies(2_000);
    a_clients_proxy_with_closed_windows_in_32_mib: Client, SMALL, attacks::closed_windows(300);
}

/// Attacks a proxy with this limit, in bytes.
fn withstand(name: &str, side: Side, limit: u64, attack: &Attack) {
    // One after the other: each takes all the processors there are.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ground = Ground::start(side, limit).await;
        ground.withstands(name, attack).await;
    });
}
