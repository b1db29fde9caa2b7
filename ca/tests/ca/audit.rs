//! What the log keeps of each call.

use crate::support::{Ca, Logs, cart, request, token_for_cart};

#[tokio::test]
async fn an_issuance_is_on_record_with_who_from_where_for_what_and_until_when() {
    let ca = Ca::start().await;
    let logs = Logs::capture();
    let (_, request) = request(None);
    let answer = ca
        .call(Some(&ca.token(&token_for_cart())), request)
        .await
        .unwrap();
    let chain = bulkhead_pki::svid::SvidChain::from_pem(&answer.chain.concat()).unwrap();
    let records = logs.records();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(record["outcome"], "issued");
    assert_eq!(record["caller"], cart().as_str());
    assert_eq!(record["identity"], cart().as_str());
    assert_eq!(record["pod"], "cart-0");
    assert_eq!(record["authenticated_by"], "jwks");
    assert_eq!(record["serial"], chain.serial());
    assert!(record["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    let not_after = chain.not_after().duration_since(std::time::UNIX_EPOCH);
    assert_eq!(record["not_after"], not_after.unwrap().as_secs());
}

#[tokio::test]
async fn a_refusal_after_authentication_names_the_caller() {
    let ca = Ca::start().await;
    let logs = Logs::capture();
    let admin = bulkhead_core::identity::SpiffeId::parse("spiffe://cluster.local/ns/a/sa/admin");
    let (_, request) = request(Some(&admin.unwrap()));
    let token = ca.token(&token_for_cart());
    ca.call(Some(&token), request).await.unwrap_err();
    let records = logs.records();
    assert_eq!(records[0]["caller"], cart().as_str());
    assert_eq!(records[0]["identity"], cart().as_str());
    let detail = records[0]["detail"].as_str().unwrap();
    assert!(
        detail.contains("spiffe://cluster.local/ns/a/sa/admin"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_call_that_its_caller_gave_up_is_on_record_too() {
    let ca = Ca::start().await;
    let logs = Logs::capture();
    let record = bulkhead_ca::audit::Record::begin(
        ca.app.address(),
        bulkhead_ca::claims::Claims::default(),
        &bulkhead_ca::metrics::Metrics::default(),
    );
    drop(record);
    assert_eq!(logs.records()[0]["outcome"], "abandoned");
}

#[tokio::test]
async fn nothing_that_is_logged_holds_a_secret() {
    // From the first line to the last, at the most talkative level.
    let logs = Logs::capture();
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let (key, good) = request(Some(&cart()));
    ca.call(Some(&token), good.clone()).await.unwrap();
    let mut bad = good;
    bad.csr.truncate(100);
    ca.call(Some(&token), bad).await.unwrap_err();
    let expired = ca
        .place
        .issuer
        .mint(&token_for_cart(), std::time::UNIX_EPOCH);
    let (_, again) = request(None);
    ca.call(Some(&expired.unwrap()), again).await.unwrap_err();

    let text = logs.text();
    assert_eq!(logs.records().len(), 3);
    let store = ca.place.store().join("current");
    let mut secrets = vec![
        token.clone(),
        token.rsplit('.').next().unwrap().to_owned(),
        key.to_pem().unwrap().to_string(),
    ];
    for name in ["root-1.key", "intermediate-1.key", "jwt-1.key"] {
        secrets.push(std::fs::read_to_string(store.join(name)).unwrap());
    }
    for secret in secrets {
        for line in secret.lines().filter(|line| line.len() > 20) {
            assert!(!text.contains(line), "the log has {line}");
        }
    }
}
