//! What the crate promises to the programs that are built on it.

#[cfg(test)]
mod authorities;
#[cfg(test)]
mod bundles;
#[cfg(test)]
mod elsewhere;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod handshakes;
#[cfg(test)]
mod openssl;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod support;
