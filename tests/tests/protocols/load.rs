//! Load generators: many connections and streams, and each request answered.

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps;

use crate::pair::{Pair, metric_becomes};
use crate::programs::{program, said};

#[tokio::test(flavor = "multi_thread")]
async fn h2load_has_each_of_many_streams_answered() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    for version in ["--h1", "--no-tls-proto=h2c"] {
        let mut h2load = program("h2load");
        h2load.args([version, "-n", "2000", "-c", "10", "-m", "20"]);
        h2load.arg(format!("http://{}/load", pair.dial()));
        let said = said(&mut h2load).await;
        let all = "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored";
        assert!(said.contains(all), "{version}: {said}");
    }
    let answered = ["reporter=\"source\"", "response_code=\"200\""];
    metric_becomes(&pair.client, "istio_requests_total", &answered, 4000.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrk_gets_no_error() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut wrk = program("wrk");
    wrk.args(["--threads", "1", "--connections", "20", "--duration", "1s"]);
    wrk.args(["--timeout", "60s"]);
    wrk.arg(format!("http://{}/load", pair.dial()));
    let said = said(&mut wrk).await;
    assert!(said.contains(" requests in "), "{said}");
    assert!(!said.contains("Socket errors"), "{said}");
    assert!(!said.contains("Non-2xx"), "{said}");
}
