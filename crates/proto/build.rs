//! Generates the gRPC code. protox compiles the .proto files, so that nobody
//! needs protoc to build Bulkhead.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "ca.proto",
        "discovery.proto",
        "health.proto",
        "rpc.proto",
        "spiffe_workload_api.proto",
        "workload_tokens.proto",
        "xds.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    // Connections are made by the programs, which know whom to trust. Maps are
    // ordered where equal resources must be equal bytes.
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".bulkhead.discovery.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
