//! The CA as its clients and operators meet it: real TLS, real gRPC, real files,
//! and tokens of a real issuer.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod issuing;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod real_rotation;
#[cfg(test)]
mod refusing;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod upstream_files;
