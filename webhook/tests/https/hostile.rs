//! Everything that the webhook must survive, and what it says to it.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{Client, connect_tls, monitoring, post, start};
use crate::pods::{pod, review};

/// 3 MiB, as documented.
const LIMIT: usize = 3 * 1024 * 1024;

/// A review with something else in the place of a field of the request.
fn with(field: &str, value: Value) -> Value {
    let mut review = review("mesh", &pod());
    review["request"][field] = value;
    review
}

#[tokio::test]
async fn what_is_not_a_review_is_an_http_error_that_says_why() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let mut v1beta1 = review("mesh", &pod());
    v1beta1["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut other = review("mesh", &pod());
    other["kind"] = json!("ConversionReview");
    for (body, says) in [
        (String::new(), "not an AdmissionReview in JSON"),
        ("{".to_owned(), "not an AdmissionReview in JSON"),
        ("null".to_owned(), "not an AdmissionReview in JSON"),
        ("[]".to_owned(), "this webhook answers AdmissionReview"),
        (
            review("mesh", &pod()).to_string() + "x",
            "not an AdmissionReview in JSON",
        ),
        ("{}".to_owned(), "admissionReviewVersions"),
        (v1beta1.to_string(), "v1beta1"),
        (other.to_string(), "ConversionReview"),
        (with("uid", json!("")).to_string(), "no uid"),
        (
            with("uid", json!(7)).to_string(),
            "not an AdmissionReview in JSON",
        ),
        (
            with("kind", json!("Pod")).to_string(),
            "not an AdmissionReview in JSON",
        ),
    ] {
        let answer = client.post(body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.text().contains(says), "{body}: {}", answer.text());
    }
    let answer = client.post(&b"{\"apiVersion\": \"\xff\xfe\"}"[..]).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn other_methods_paths_and_content_types_are_told_what_is_taken_here() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let mut ask = async |method: &str, path: &str, content_type: Option<&str>| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let body = Full::new(Bytes::from(review("mesh", &pod()).to_string()));
        let answer = client.send(request.body(body).unwrap()).await.unwrap();
        (answer.status.as_u16(), answer.text())
    };
    let json = Some("application/json");
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let (status, text) = ask(method, "/inject", json).await;
        assert_eq!(status, 405, "{method}");
        assert!(text.contains("by POST"), "{text}");
    }
    for path in ["/", "/inject/", "/inject/x", "/metrics", "/validate"] {
        let (status, text) = ask("POST", path, json).await;
        assert_eq!(status, 404, "{path}");
        assert!(text.contains("/inject"), "{text}");
    }
    for content_type in [None, Some("text/plain"), Some("application/yaml"), Some("")] {
        let (status, text) = ask("POST", "/inject", content_type).await;
        assert_eq!(status, 415, "{content_type:?}");
        assert!(text.contains("application/json"), "{text}");
    }
    let (status, _) = ask("POST", "/inject", Some("application/json; charset=utf-8")).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_review_that_may_be_about_a_pod_and_is_not_understood_is_denied() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}});
    for (review, says) in [
        (
            with("kind", json!({"group": "", "version": "v2", "kind": "Pod"})),
            "Pod of v1",
        ),
        (
            with(
                "kind",
                json!({"group": "apps", "version": "v1", "kind": "Deployment"}),
            ),
            "Deployment",
        ),
        (with("object", deployment), "apps/v1"),
        (with("object", json!(null)), "no object"),
        (with("object", json!([])), "not a JSON object"),
        (with("object", json!("pod")), "not a JSON object"),
        (with("namespace", json!("")), "namespace"),
        (with("namespace", json!("mesh/secrets/x")), "namespace"),
        (with("namespace", json!("..")), "namespace"),
        (with("namespace", json!("mesh?watch=true")), "namespace"),
        (with("namespace", json!("m".repeat(64))), "namespace"),
    ] {
        let response = client.review(&review).await;
        assert_eq!(response["allowed"], false, "{review}");
        assert_eq!(response["status"]["code"], 400, "{response}");
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn what_is_surely_no_new_pod_is_allowed_untouched() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let others = [
        with("operation", json!("UPDATE")),
        with("operation", json!("DELETE")),
        with("operation", json!("CONNECT")),
        with("subResource", json!("exec")),
    ];
    for review in &others {
        let response = client.review(review).await;
        assert_eq!(response["allowed"], true, "{response}");
        assert!(response.get("patch").is_none() && response.get("warnings").is_none());
    }
    // Somebody's own rules ask about Deployments: they must not stop working,
    // and somebody should be told.
    let rules = json!({"group": "apps", "version": "v1", "resource": "deployments"});
    let response = client.review(&with("resource", rules)).await;
    assert_eq!(response["allowed"], true);
    assert!(response.get("patch").is_none());
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("deployments.apps"), "{warning}");
}

#[tokio::test]
async fn a_pod_of_any_shape_gets_an_answer() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let nothing = [
        json!(null),
        json!(7),
        json!("x"),
        json!([]),
        json!({}),
        json!([null]),
    ];
    for field in ["metadata", "spec"] {
        for value in &nothing {
            let mut odd = pod();
            odd[field] = value.clone();
            assert!(client.review(&review("mesh", &odd)).await["allowed"].is_boolean());
        }
    }
    for field in [
        "labels",
        "annotations",
        "ownerReferences",
        "name",
        "generateName",
    ] {
        for value in &nothing {
            let mut odd = pod();
            odd["metadata"][field] = value.clone();
            assert!(client.review(&review("mesh", &odd)).await["allowed"].is_boolean());
        }
    }
    for field in ["containers", "initContainers", "volumes", "securityContext"] {
        for value in &nothing {
            let mut odd = pod();
            odd["spec"][field] = value.clone();
            assert!(client.review(&review("mesh", &odd)).await["allowed"].is_boolean());
        }
    }
}

#[tokio::test]
async fn ten_thousand_containers_are_refused_and_not_suffered() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let container = |number: usize| json!({"name": format!("c{number}"), "image": "app:1"});
    let mut many = pod();
    many["spec"]["containers"] = (0..10_000).map(container).collect();
    let review = review("mesh", &many);
    let response = timeout(Duration::from_secs(5), client.review(&review))
        .await
        .unwrap();
    assert_eq!(response["allowed"], false);
    assert_eq!(response["auditAnnotations"]["reason"], "too_large");
}

#[tokio::test]
async fn deep_nesting_is_refused_with_the_uid_and_does_not_exhaust_the_stack() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
        let placeholder = review("mesh", &json!("DEEP")).to_string();
        let answer = client.post(placeholder.replace("\"DEEP\"", &deep)).await;
        let response = answer.review();
        assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains("recursion limit"), "{message}");
    }
}

#[tokio::test]
async fn three_mebibytes_are_read_and_one_byte_more_is_answered_with_413() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let padded = |length: usize| {
        let mut body = review("mesh", &pod()).to_string();
        body.push_str(&" ".repeat(length - body.len()));
        body
    };
    assert_eq!(client.post(padded(LIMIT)).await.review()["allowed"], true);
    for length in [LIMIT + 1, 2 * LIMIT] {
        let mut client = Client::of(&app).await;
        let answer = client.post(padded(length)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(answer.text().contains("3145728 bytes"), "{}", answer.text());
    }
}

#[tokio::test]
async fn connections_that_are_cut_anywhere_leave_nothing_behind() {
    let app = start().await;
    let roots = app.ca_bundle().await;
    let body = review("mesh", &pod()).to_string();
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let whole = head.clone() + &body;
    for cut in [
        0,
        1,
        10,
        head.len() - 1,
        head.len(),
        head.len() + 10,
        whole.len(),
    ] {
        let mut stream = connect_tls(app.address(), &roots, "http/1.1")
            .await
            .unwrap();
        stream.write_all(&whole.as_bytes()[..cut]).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
    }
    // Not even TLS: nothing, garbage, plaintext HTTP, half a record.
    for bytes in [
        &b""[..],
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
    ] {
        let mut stream = TcpStream::connect(app.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // The server may also reset; either way it ends.
        let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
        assert!(read.await.is_ok(), "{bytes:?} left a connection open");
    }
    let mut client = Client::of(&app).await;
    assert_eq!(
        client.review(&review("mesh", &pod())).await["allowed"],
        true
    );
    // Every other connection ends; this one stays.
    let only_ours = async {
        loop {
            let (_, metrics) = monitoring(&app, "/metrics").await;
            if metrics.contains("bulkhead_webhook_connections 1\n") {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), only_ours).await.unwrap();
}

#[tokio::test]
async fn a_hundred_callers_at_once_are_all_answered() {
    let app = start().await;
    let roots = app.ca_bundle().await;
    let address = app.address();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let roots = roots.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(address, &roots).await.unwrap();
                for _ in 0..5 {
                    let answer = client.send(post(review("mesh", &pod()).to_string()));
                    assert!(answer.await.unwrap().review()["patch"].is_string());
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}
