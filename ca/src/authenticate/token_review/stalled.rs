//! An API server that does not answer, and those who wait for it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_core::sidecar::default_trust_domain;
use futures::future::join_all;
use hyper::{Request, Response};
use kube::client::Body;
use serde_json::json;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::*;

const DEADLINE: Duration = Duration::from_secs(5);

/// An API server that believes every token, when it answers.
#[derive(Clone)]
struct Server {
    answers: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    /// How many requests it has in hand.
    open: Arc<AtomicUsize>,
}

/// A request that is in hand until it is answered or given up.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Server {
    fn stalled() -> Self {
        Self {
            answers: Arc::new(Semaphore::new(0)),
            asked: Arc::default(),
            open: Arc::default(),
        }
    }

    fn reviewer(&self) -> TokenReviewer {
        let server = self.clone();
        let answer = tower::service_fn(move |_: Request<Body>| {
            server.asked.fetch_add(1, Ordering::SeqCst);
            server.open.fetch_add(1, Ordering::SeqCst);
            let (open, answers) = (Open(Arc::clone(&server.open)), Arc::clone(&server.answers));
            async move {
                let _open = open;
                if let Ok(answer) = answers.acquire().await {
                    answer.forget();
                }
                Ok::<_, Infallible>(Response::new(Body::from(review())))
            }
        });
        let rules = TokenRules {
            audience: "bulkhead-ca".to_owned(),
            allow_without_pod: true,
        };
        TokenReviewer::new(
            kube::Client::new(answer, "default"),
            default_trust_domain(),
            rules,
            None,
            DEADLINE,
            Clock::system(),
        )
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Lets everybody who can run do so, until so many requests are in hand.
    async fn until_open(&self, expected: usize) {
        for _ in 0..1000 {
            if self.open() == expected {
                return;
            }
            yield_now().await;
        }
        assert_eq!(self.open(), expected, "requests in hand");
    }
}

fn review() -> Vec<u8> {
    let user = json!({
        "username": "system:serviceaccount:shop:cart",
        "groups": [GROUP],
    });
    let status = json!({"authenticated": true, "audiences": ["bulkhead-ca"], "user": user});
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {},
        "status": status,
    });
    review.to_string().into_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_review_without_an_answer_ends_in_time_and_leaves_nothing_behind() {
    let server = Server::stalled();
    let reviewer = server.reviewer();
    let began = Instant::now();
    let error = reviewer.authenticate("token").await.unwrap_err();
    assert_eq!(error.reason(), AuthenticationError::ReviewTimeout.reason());
    assert_eq!(began.elapsed(), DEADLINE);
    server.until_open(0).await;
    // Nobody is told of that answer later: the next caller is a new question.
    server.answers.add_permits(1);
    assert!(reviewer.authenticate("token").await.is_ok());
    assert_eq!(server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_with_one_token_share_one_review_and_all_hear_of_its_end() {
    let server = Server::stalled();
    let reviewer = server.reviewer();
    let callers = join_all((0..20).map(|_| reviewer.authenticate("token")));
    let another = reviewer.authenticate("another");
    let opens = async {
        server.until_open(2).await;
        server.answers.add_permits(2);
    };
    let (callers, another, ()) = tokio::join!(callers, another, opens);
    assert!(another.is_ok() && callers.iter().all(Result::is_ok));
    assert_eq!(server.asked(), 2, "one for each token");

    let failed = join_all((0..20).map(|_| reviewer.authenticate("late"))).await;
    assert!(failed.iter().all(Result::is_err));
    assert_eq!(server.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_review_goes_on_while_anybody_waits_and_is_given_up_with_the_last() {
    let server = Server::stalled();
    let reviewer = Arc::new(server.reviewer());
    let wait = || {
        let reviewer = Arc::clone(&reviewer);
        tokio::spawn(async move { reviewer.authenticate("token").await })
    };
    let (first, second) = (wait(), wait());
    server.until_open(1).await;
    // Whoever began it is not needed for it.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(server.open(), 1);
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    server.until_open(0).await;
    let third = wait();
    server.until_open(1).await;
    server.answers.add_permits(1);
    assert!(third.await.unwrap().is_ok());
    assert_eq!(server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_more_reviews_are_under_way_than_the_api_server_is_to_have() {
    let server = Server::stalled();
    let reviewer = server.reviewer();
    let tokens: Vec<_> = (0..3 * MAX_IN_FLIGHT).map(|n| n.to_string()).collect();
    let all = join_all(tokens.iter().map(|token| reviewer.authenticate(token)));
    let opens = async {
        server.until_open(MAX_IN_FLIGHT).await;
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(server.asked(), MAX_IN_FLIGHT);
        server.answers.add_permits(tokens.len());
    };
    let (all, ()) = tokio::join!(all, opens);
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(server.asked(), tokens.len());
}
