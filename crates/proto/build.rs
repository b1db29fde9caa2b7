//! Generates the gRPC code. protox compiles the .proto files, so that nobody
//! needs protoc to build Bulkhead.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["ca.proto", "health.proto"], ["proto"])?;
    // Connections are made by the programs, which know whom to trust.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
