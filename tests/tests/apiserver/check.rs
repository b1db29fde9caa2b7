//! `bulkhead check` on a real API server.

use bulkhead::check::finding::{Finding, Status};
use bulkhead::check::{Report, check};
use bulkhead::cluster::Cluster as Asked;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::namespace::{Namespace, a_pod, may};
use kube::Client;
use serde_json::json;

use crate::cluster::{Cluster, SYSTEM_NAMESPACE};

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

async fn report(client: Client) -> Report {
    let asked = Asked {
        client,
        system_namespace: SYSTEM_NAMESPACE.to_owned(),
    };
    check(&asked, None, Clock::system().now()).await
}

fn of<'a>(report: &'a Report, check: &str) -> Vec<&'a Finding> {
    let findings = report.findings.iter();
    findings.filter(|finding| finding.check == check).collect()
}

fn is_ok(report: &Report, check: &str) -> bool {
    let findings = of(report, check);
    !findings.is_empty() && findings.iter().all(|finding| finding.status == Status::Ok)
}

#[tokio::test]
async fn with_nothing_of_ours_there_each_thing_is_named_with_what_to_do() {
    let cluster = Cluster::start().await;
    let report = report(cluster.client().await).await;
    assert!(report.kubernetes.is_some());
    for check in [
        "kinds",
        "programs",
        "registration",
        "endpoints",
        "trust-bundle",
        "self-test",
    ] {
        let problems = of(&report, check);
        let problem = problems.iter().find(|finding| finding.is_problem());
        let problem = problem.unwrap_or_else(|| panic!("{check}: {problems:#?}"));
        assert!(problem.remedy.is_some(), "{problem:?}");
    }
}

#[tokio::test]
async fn a_webhook_that_works_is_found_to_work_and_one_that_is_away_is_not() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_webhook(&[]).await;
    let report_of_good = report(cluster.client().await).await;
    for check in ["registration", "self-test"] {
        assert!(
            is_ok(&report_of_good, check),
            "{:#?}",
            of(&report_of_good, check)
        );
    }
    cluster.serve_by([]);
    webhook.shutdown().await;
    let report_of_bad = report(cluster.client().await).await;
    let found = of(&report_of_bad, "self-test");
    assert!(found[0].is_problem(), "{found:#?}");
    assert!(
        found[0].message.contains("inject.bulkhead.io"),
        "{found:#?}"
    );
}

#[tokio::test]
async fn a_pod_that_lacks_its_sidecar_is_named_with_the_command_that_mends_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    // Created while there was no webhook; it belongs to nobody.
    namespace.create_pod(&a_pod("early").build()).await.unwrap();
    let out = a_pod("out").labels(&[("bulkhead.io/inject", "disabled")]);
    namespace.create_pod(&out.build()).await.unwrap();
    let host = a_pod("host").spec(json!({"hostNetwork": true}));
    namespace.create_pod(&host.build()).await.unwrap();

    let report = report(client).await;
    let problems = of(&report, "pods");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].is_problem());
    assert!(problems[0].message.contains("pod/early"), "{problems:#?}");
    let remedy = problems[0].remedy.as_deref().unwrap_or_default();
    assert!(remedy.contains("pod/early"), "{remedy}");
}

#[tokio::test]
async fn whoever_may_not_look_is_told_so_and_sees_no_problem_there() {
    let cluster = Cluster::start().await;
    let namespace = Namespace::existing(&cluster.client().await, SYSTEM_NAMESPACE);
    namespace.create_service_account("nobody").await;
    let namespaces = may(&["list"], "", "namespaces", &[]);
    namespace.grant_everywhere("nobody", vec![namespaces]).await;
    let token = namespace.token("nobody", None, None).await;
    let report = report(cluster.server().client_with_token(token).await).await;
    assert_eq!(report.problems(), 0, "{report:#?}");
    assert!(report.findings.iter().any(|finding| {
        finding.status == Status::Skipped && finding.message.starts_with("you may not look")
    }));
}
