//! A CA without one of its tasks is of no use, and says so, to be started again.

use std::convert::Infallible;
use std::time::Duration;

use bulkhead_ca::app::Dependencies;
use futures::FutureExt as _;
use hyper::{Request, Response};
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::Ca;

#[tokio::test]
async fn a_task_that_panics_ends_the_ca_and_is_named() {
    let (spoil, spoilt) = watch::channel(false);
    let watched = tower::service_fn(move |_: Request<Body>| {
        let mut spoilt = spoilt.clone();
        async move {
            let spoilt = spoilt.wait_for(|spoilt| *spoilt).await;
            assert!(spoilt.is_err(), "a bug in whoever asks the API server");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let given = Dependencies {
        kube: Some(kube::Client::new(watched, "default")),
        ..Dependencies::default()
    };
    let ca = Ca::start_given(|config| config.authentication.kubernetes = true, given).await;
    assert_eq!(ca.app.task_ended().now_or_never(), None);
    spoil.send_replace(true);
    let ended = timeout(Duration::from_secs(60), ca.app.task_ended()).await;
    let ended = ended.expect("a CA without its watch is of no use");
    assert_eq!((ended.name, ended.panicked), ("the watch of pods", true));
}
