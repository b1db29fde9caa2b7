//! The CA as its clients and operators meet it: real TLS, real gRPC, real files,
//! and tokens of a real issuer.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod blind;
#[cfg(test)]
mod by_certificate;
#[cfg(test)]
mod company;
#[cfg(test)]
mod expired;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod following;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod issuing;
#[cfg(test)]
mod key_server;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod openssl_files;
#[cfg(test)]
mod pod_certificates;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod real_rotation;
#[cfg(test)]
mod refusing;
#[cfg(test)]
mod reviewer;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod token_issuers;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod upstream_files;
#[cfg(test)]
mod upstream_leaf;
#[cfg(test)]
mod vault;
