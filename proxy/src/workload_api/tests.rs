//! The Workload API as an application meets it: a real socket, real gRPC, and in
//! place of the CA somebody who can be told what to answer. Each MUST of the
//! standard is a test that names its section.

mod jwt;
pub(super) mod mesh;
mod x509;

use std::os::unix::fs::PermissionsExt as _;

use bulkhead_proto::workload_api::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use tonic::Code;

use mesh::{Mesh, Pod, secured, with_header};

#[tokio::test]
async fn endpoint_3_every_call_without_the_security_header_is_refused() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    for values in [&[][..], &["True"], &["false"], &[""], &["true", "true"]] {
        let mut api = pod.client().await;
        let refused = [
            api.fetch_x509svid(with_header(X509svidRequest {}, values))
                .await
                .err(),
            api.fetch_x509_bundles(with_header(X509BundlesRequest {}, values))
                .await
                .err(),
            api.fetch_jwtsvid(with_header(JwtsvidRequest::default(), values))
                .await
                .err(),
            api.fetch_jwt_bundles(with_header(JwtBundlesRequest {}, values))
                .await
                .err(),
            api.validate_jwtsvid(with_header(ValidateJwtsvidRequest::default(), values))
                .await
                .err(),
        ];
        for status in refused {
            assert_eq!(status.unwrap().code(), Code::InvalidArgument, "{values:?}");
        }
    }
}

#[tokio::test]
async fn endpoint_6_a_profile_that_is_not_served_is_unimplemented() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let mut client = tonic::client::Grpc::new(pod.channel().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchWITSVID");
    let request = with_header(X509svidRequest {}, &["true"]);
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
    let refused = client.unary(request, path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn endpoint_7_nothing_is_served_but_what_the_standard_names() {
    let pod = Pod::start(&Mesh::new()).await;
    let mut client = tonic::client::Grpc::new(pod.channel().await);
    for path in [
        "/SpiffeWorkloadAPI/FetchEverything",
        "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/bulkhead.ca.v1.WorkloadTokens/MintJwtSvid",
    ] {
        client.ready().await.unwrap();
        let request = with_header(X509svidRequest {}, &["true"]);
        let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let refused = client
            .unary(request, path.clone(), codec)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn any_user_of_the_pod_may_connect() {
    let pod = Pod::start(&Mesh::new()).await;
    let mode = std::fs::metadata(pod.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let beside = std::fs::read_dir(pod.path().parent().unwrap()).unwrap();
    assert_eq!(beside.count(), 1, "nothing else is left there");
}

#[tokio::test]
async fn a_socket_that_an_earlier_proxy_left_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    super::socket::bind(&path).unwrap();
    let again = super::socket::bind(&path).unwrap();
    let connected = tokio::net::UnixStream::connect(&path);
    let (connected, accepted) = tokio::join!(connected, again.accept());
    assert!(connected.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(super::socket::bind(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let request = secured(ValidateJwtsvidRequest {
        audience: "reports".into(),
        svid: "x".repeat(1024 * 1024),
    });
    let refused = pod.client().await.validate_jwtsvid(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
}
