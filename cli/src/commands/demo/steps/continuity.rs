//! What changes while requests run, and costs none of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_proxy::app::Proxy;
use bulkhead_proxy::credentials::Latest;
use bulkhead_runtime::drain::Outcome;
use futures::future::try_join_all;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::certificates::credentials;
use crate::commands::demo::application::SLOW;
use crate::commands::demo::http::{self, Answer, Connection};
use crate::commands::demo::load::{Load, Tally, VISITORS};
use crate::commands::demo::stage::Stage;
use crate::commands::demo::story::{Proof, expect};

/// How often each pod's certificate is replaced.
const ROTATIONS: usize = 20;
/// How many requests are served under each certificate, at least.
const REQUESTS_EACH: u64 = 50;
/// How many are served before and after something happens.
const REQUESTS_AROUND: u64 = 500;
/// More than there are visitors, whose connections front's proxy keeps: so that
/// it makes new ones, to one replica after the other.
const SLOW_REQUESTS: u64 = 2 * VISITORS;
/// How often something that is awaited is looked for.
const LOOK: Duration = Duration::from_millis(2);
/// A renewal takes milliseconds; after a failure it waits a second or two.
const RENEWAL_LIMIT: Duration = Duration::from_secs(10);

const RENEWALS: &str = "bulkhead_certificate_renewals_total";

pub(super) async fn rotate_under_load(stage: &mut Stage) -> anyhow::Result<Proof> {
    let progress = stage.progress.clone();
    let (_, workloads) = stage.workloads().await?;
    let load = Load::start(workloads.dial_replicas());
    load.answered(REQUESTS_EACH).await;
    let replica = workloads.replica.as_ref().context("cart-1 is gone")?;
    let mut pods = [
        Pod::new("front-0", &workloads.front).await?,
        Pod::new("cart-0", &workloads.cart).await?,
        Pod::new("cart-1", replica).await?,
    ];
    for round in 1..=ROTATIONS {
        try_join_all(pods.iter_mut().map(Pod::rotate)).await?;
        load.answered(REQUESTS_EACH).await;
        let served = load.tally().served;
        progress.show(format!(
            "{round} of {ROTATIONS} rotations, {served} requests"
        ));
    }
    let tally = load.stop().await;
    without_failure(&tally)?;
    let serials: BTreeSet<_> = pods.iter().flat_map(|pod| &pod.serials).collect();
    let rotations = ROTATIONS * pods.len();
    let expected = rotations + pods.len();
    let seen = format!("{} different ones", serials.len());
    expect(
        serials.len() == expected,
        &format!("{expected} serial numbers"),
        seen,
    )?;
    let shown: Vec<_> = pods[0].serials.iter().map(|serial| &serial[..8]).collect();
    Ok(Proof::new(format!(
        "{rotations} rotations, {} requests, 0 failed; serials differ",
        tally.served
    ))
    .with(format!(
        "{ROTATIONS} times for each of {} pods, a new key each time",
        pods.len()
    ))
    .with(format!(
        "front-0's serials: {} … {}",
        shown[..3].join(", "),
        shown[shown.len() - 1]
    )))
}

pub(super) async fn ca_away(stage: &mut Stage) -> anyhow::Result<Proof> {
    const FAILED: &str = "outcome=\"authority_unreachable\"";
    let progress = stage.progress.clone();
    let (mesh, workloads) = stage.workloads().await?;
    let status = workloads.front.addresses.status;
    let mut front = Pod::new("front-0", &workloads.front).await?;
    let load = Load::start(workloads.dial_replicas());
    load.answered(REQUESTS_AROUND).await;
    let failed_before = http::metric(status, RENEWALS, &[FAILED]).await?;

    mesh.stop_ca().await;
    let is_gone = TcpStream::connect(mesh.ca_address()).await.is_err();
    expect(is_gone, "no CA at its address", "somebody who accepts")?;
    progress.show("the CA is stopped; a renewal is asked for".to_owned());
    workloads.front.renewals.renew();
    let failed = http::metric_exceeds(status, RENEWALS, &[FAILED], failed_before).await?;
    load.answered(REQUESTS_AROUND).await;
    let current = credentials("front-0", &workloads.front)?
        .identity()
        .serial();
    let is_kept = front.serials.last() == Some(&current);
    expect(is_kept, "the old certificate to serve on", &current)?;
    let served_without = load.tally().served;

    mesh.start_ca().await?;
    progress.show("the CA is back; front's proxy tries again by itself".to_owned());
    let renewed = front.changed().await?;
    load.answered(REQUESTS_AROUND).await;
    let tally = load.stop().await;
    without_failure(&tally)?;
    Ok(Proof::new(format!(
        "{} requests, 0 failed; rotation failed, then resumed",
        tally.served
    ))
    .with(format!(
        "the CA stopped: nobody listens at {}",
        mesh.ca_address()
    ))
    .with(format!(
        "front's proxy counts the renewal that failed: {}",
        failed.line
    ))
    .with(format!(
        "its old certificate serves on: {served_without} requests by then, none failed"
    ))
    .with(format!(
        "the CA is back with the same keys; nobody told the proxy, and its certificate is \
         now {}…",
        &renewed[..8]
    )))
}

pub(super) async fn drain(stage: &mut Stage) -> anyhow::Result<Proof> {
    let progress = stage.progress.clone();
    let (_, workloads) = stage.workloads().await?;
    let replica = workloads.replica.take().context("cart-1 is gone already")?;
    let (cart, other) = (&workloads.cart_application, &workloads.replica_application);
    let port = replica.addresses.inbound[0];
    let load = Load::start(workloads.dial_replicas());
    load.answered(REQUESTS_AROUND).await;

    let mut slow = slow_requests(workloads.dial_replicas());
    until(|| cart.seen_slow() + other.seen_slow() == SLOW_REQUESTS).await;
    let in_hand = other.seen_slow();
    expect(in_hand > 0, "cart-1 to have a request in hand", "none")?;
    progress.show(format!(
        "cart-1's proxy stops, with {in_hand} requests in hand"
    ));
    let draining = tokio::spawn(replica.drain());
    until_closed(port).await;
    let is_waiting = !draining.is_finished();
    expect(
        is_waiting,
        "the drain to wait for what is in hand",
        "its end",
    )?;
    let by_cart = cart.seen();
    load.answered(REQUESTS_AROUND).await;

    cart.answer_slow();
    other.answer_slow();
    while let Some(answer) = slow.join_next().await {
        let answer = answer?.context("expected an answer to each request in hand")?;
        expect(
            answer.status == 200,
            "200 for each request in hand",
            answer.shown(),
        )?;
    }
    let outcome = draining.await?;
    let is_finished = outcome == Outcome::Finished;
    expect(
        is_finished,
        "the drain to finish its work",
        format!("{outcome:?}"),
    )?;

    let by_other = other.seen();
    load.answered(REQUESTS_AROUND).await;
    let tally = load.stop().await;
    without_failure(&tally)?;
    let late = other.seen() - by_other;
    expect(late == 0, "no request at cart-1 after its end", late)?;
    Ok(Proof::new(format!(
        "{} requests, 0 failed; the other replica took over",
        tally.served + SLOW_REQUESTS
    ))
    .with(format!(
        "cart-1's proxy was told to stop with {in_hand} slow requests in hand, and closed {port}"
    ))
    .with(format!(
        "all {in_hand} were answered with 200; only then did the proxy end"
    ))
    .with(format!(
        "meanwhile and since, cart-0 served {}",
        cart.seen() - by_cart
    )))
}

/// Requests that are in hand until the applications are told to answer. They are
/// no GETs, so that nothing on their way may send them twice.
fn slow_requests(address: SocketAddr) -> JoinSet<anyhow::Result<Answer>> {
    let mut slow = JoinSet::new();
    for _ in 0..SLOW_REQUESTS {
        slow.spawn(async move {
            let mut connection = Connection::to(address).await?;
            connection.post(SLOW, "text/plain", "order").await
        });
    }
    slow
}

/// Waits until nobody accepts connections there.
async fn until_closed(address: SocketAddr) {
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(LOOK).await;
    }
}

fn without_failure(tally: &Tally) -> anyhow::Result<()> {
    expect(tally.failed == 0, "no failed request", tally.failures())
}

/// A pod whose certificates are watched.
struct Pod<'a> {
    name: &'static str,
    proxy: &'a Proxy,
    latest: Latest,
    /// Of every certificate that it was seen with.
    serials: Vec<String>,
}

impl<'a> Pod<'a> {
    async fn new(name: &'static str, proxy: &'a Proxy) -> anyhow::Result<Self> {
        let mut latest = proxy.latest.clone();
        let first = latest
            .first()
            .await
            .with_context(|| format!("{name}'s proxy has ended"))?;
        Ok(Self {
            name,
            proxy,
            latest,
            serials: vec![first.identity().serial()],
        })
    }

    async fn rotate(&mut self) -> anyhow::Result<()> {
        self.proxy.renewals.renew();
        self.changed().await.map(|_| ())
    }

    /// Waits for the next certificate, and returns its serial number.
    async fn changed(&mut self) -> anyhow::Result<String> {
        let next = timeout(RENEWAL_LIMIT, self.latest.changed())
            .await
            .with_context(|| format!("{} got none within {RENEWAL_LIMIT:?}", self.name))
            .context("expected a new certificate")?
            .with_context(|| format!("{}'s proxy has ended", self.name))?;
        let serial = next.identity().serial();
        self.serials.push(serial.clone());
        Ok(serial)
    }
}
