use futures::FutureExt as _;
use futures::future::join_all;
use tokio::task::yield_now;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn queue(in_service: usize, waiting: usize) -> FairQueue<&'static str> {
    let limits = Limits {
        in_service,
        waiting,
        waiting_of_one: waiting,
    };
    FairQueue::start("the queue", limits, PATIENCE, &Tasks::default())
}

#[tokio::test]
async fn whoever_comes_alone_has_its_turn_at_once() {
    let queue = queue(1, 1);
    for _ in 0..3 {
        let turn = queue.turn("a", Urgency::Renewal).await.unwrap();
        drop(turn);
        let idle = async {
            while queue.load(0).in_service > 0 {
                yield_now().await;
            }
        };
        idle.await;
    }
}

#[tokio::test]
async fn a_turn_that_ends_is_the_next_ones() {
    let queue = queue(1, 10);
    let turn = queue.turn("a", Urgency::Renewal).await.unwrap();
    let mut next = Box::pin(queue.turn("b", Urgency::Renewal));
    assert!(next.as_mut().now_or_never().is_none());
    drop(turn);
    next.await.unwrap();
}

#[tokio::test]
async fn whoever_comes_finds_the_place_that_a_greedy_caller_may_not_have() {
    let queue = queue(4, 10);
    let _greedy = [
        queue.turn("greedy", Urgency::Renewal).await.unwrap(),
        queue.turn("greedy", Urgency::Renewal).await.unwrap(),
    ];
    let mut third = Box::pin(queue.turn("greedy", Urgency::Renewal));
    assert!(third.as_mut().now_or_never().is_none(), "half is enough");
    let other = queue.turn("other", Urgency::Renewal).now_or_never();
    other.expect("there is a place").unwrap();
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_no_trace() {
    let queue = queue(1, 10);
    let turn = queue.turn("a", Urgency::Renewal).await.unwrap();
    let mut gone = Box::pin(queue.turn("b", Urgency::Renewal));
    let mut granted_and_gone = Box::pin(queue.turn("c", Urgency::NoCertificate));
    assert!(gone.as_mut().now_or_never().is_none());
    assert!(granted_and_gone.as_mut().now_or_never().is_none());
    assert_eq!(queue.load(0).waiting, 2);
    drop(gone);
    assert_eq!(queue.load(0).waiting, 1);
    drop(turn);
    // The turn is given, and whoever it is for goes away without looking.
    while queue.load(0).waiting > 0 {
        yield_now().await;
    }
    drop(granted_and_gone);
    queue.turn("d", Urgency::Renewal).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever_and_everybody_is_told_when_to_come_again() {
    let queue = queue(1, 1);
    let _turn = queue.turn("a", Urgency::Renewal).await.unwrap();
    let (waits, full) = tokio::join!(
        queue.turn("b", Urgency::Renewal),
        queue.turn("c", Urgency::Renewal)
    );
    assert_eq!(waits.unwrap_err().why, Why::Patience);
    let full = full.unwrap_err();
    assert_eq!(full.why, Why::Full);
    assert!(full.retry_after >= Duration::from_secs(1), "{full}");
    assert_eq!(queue.load(0).waiting, 0);
}

#[tokio::test]
async fn a_greedy_caller_does_not_take_the_others_turns() {
    let queue = queue(1, 200);
    let order = Arc::new(Mutex::new(Vec::new()));
    let first = queue.turn("first", Urgency::Renewal).await.unwrap();
    let call = |caller: &'static str| {
        let (queue, order) = (queue.clone(), Arc::clone(&order));
        async move {
            let turn = queue.turn(caller, Urgency::NoCertificate).await;
            if turn.is_ok() {
                order.lock().unwrap().push(caller);
            }
        }
    };
    let greedy = (0..100).map(|_| call("greedy"));
    let others = ["a", "b", "c"].map(call);
    let everybody = join_all(greedy.chain(others));
    let ((), _) = tokio::join!(async { drop(first) }, everybody);
    let order = order.lock().unwrap();
    let last = order
        .iter()
        .rposition(|caller| *caller != "greedy")
        .unwrap();
    assert!(last <= 5, "{:?}", &order[..10]);
    assert_eq!(order.len(), 103);
}

#[tokio::test]
async fn a_newcomer_takes_the_place_of_the_greedy_ones_last() {
    let queue = queue(1, 3);
    let turn = queue.turn("greedy", Urgency::Renewal).await.unwrap();
    let call = |caller, urgency| {
        let queue = queue.clone();
        async move { queue.turn(caller, urgency).await.map(drop) }
    };
    let greedy = (0..3).map(|_| call("greedy", Urgency::NoCertificate));
    let other = call("other", Urgency::Renewal);
    let (greedy, other, ()) = tokio::join!(join_all(greedy), other, async { drop(turn) });
    other.unwrap();
    let refused: Vec<_> = greedy.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].why, Why::Displaced);
}
