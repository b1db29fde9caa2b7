//! Leaf certificates, written as DER (RFC 5280, 4.1; X.690) without a detour.
//!
//! A CA writes one for each call, so what all leaves of a signer have in common
//! is encoded once. An intermediate is written the same way, with other
//! extensions and a subject that has a name. The signer's name is copied byte for byte, whatever form it
//! has: encoded anew it might not compare equal, and the chain would not hold.

use std::net::IpAddr;
use std::time::SystemTime;

use bulkhead_core::identity::TrustDomain;
use time::OffsetDateTime;

use crate::certificate::Certificate;
use crate::csr::INTERMEDIATE_NAME;
use crate::key::{KeyKind, PrivateKey, PublicKey};
use crate::signer::{SignError, Validity, date};

mod tag {
    pub(super) const BOOLEAN: u8 = 0x01;
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const BIT_STRING: u8 = 0x03;
    pub(super) const OCTET_STRING: u8 = 0x04;
    pub(super) const OID: u8 = 0x06;
    pub(super) const UTF8_STRING: u8 = 0x0c;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    /// `[3]`, explicit: the extensions.
    pub(super) const EXTENSIONS: u8 = 0xa3;
    /// `[0]`, implicit: the key identifier of the signer.
    pub(super) const KEY_IDENTIFIER: u8 = 0x80;
    /// `[2]`, `[6]` and `[7]`, implicit: kinds of name (4.2.1.6).
    pub(super) const DNS_NAME: u8 = 0x82;
    pub(super) const URI: u8 = 0x86;
    pub(super) const IP_ADDRESS: u8 = 0x87;
}

/// Object identifiers, as they are encoded.
mod oid {
    pub(super) const COMMON_NAME: &[u8] = &[0x55, 4, 3];
    pub(super) const ORGANIZATION: &[u8] = &[0x55, 4, 10];
    pub(super) const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 14];
    pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
    pub(super) const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
    pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
    pub(super) const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 35];
    pub(super) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
    pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
    pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
    pub(super) const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    pub(super) const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    pub(super) const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
}

/// `[0] { INTEGER 2 }`: version 3.
const VERSION_3: &[u8] = &[0xa0, 3, tag::INTEGER, 1, 2];
const EMPTY_NAME: &[u8] = &[tag::SEQUENCE, 0];
const NULL: &[u8] = &[5, 0];
/// BIT STRING with the first bit set (4.2.1.3).
const DIGITAL_SIGNATURE: &[u8] = &[tag::BIT_STRING, 2, 7, 0x80];
/// BIT STRING with keyCertSign and cRLSign.
const SIGNING: &[u8] = &[tag::BIT_STRING, 2, 1, 0x06];
/// `{ cA TRUE, pathLenConstraint 0 }`: it signs leaves only (4.2.1.9).
const SIGNS_LEAVES: &[u8] = &[tag::SEQUENCE, 6, tag::BOOLEAN, 1, 0xff, tag::INTEGER, 1, 0];

/// What a leaf is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// A workload, which is a client and a server.
    Workload,
    /// A server of the control plane.
    Server,
}

/// A name that a leaf carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name<'a> {
    Uri(&'a str),
    Dns(&'a str),
    Ip(IpAddr),
}

/// Writes the leaves of one signer.
pub(crate) struct LeafWriter {
    signature_algorithm: Vec<u8>,
    issuer: Vec<u8>,
    signer_key: Vec<u8>,
    workload_extensions: Vec<u8>,
    server_extensions: Vec<u8>,
}

impl LeafWriter {
    pub(crate) fn new(signer: &Certificate, key: &PrivateKey) -> Self {
        let facts = signer.facts();
        // RFC 5280 (4.2.1.1) has the identifier of the signer's own; where that
        // has none, the name alone leads to it.
        let signer_key = facts.key_identifier.as_ref().map(|identifier| {
            let identifier = tlv(tag::KEY_IDENTIFIER, identifier);
            let value = tlv(tag::SEQUENCE, &identifier);
            extension(oid::AUTHORITY_KEY_IDENTIFIER, false, &value)
        });
        let signer_key = signer_key.unwrap_or_default();
        let extensions = |usages: &[&[u8]]| {
            let usages: Vec<u8> = usages
                .iter()
                .flat_map(|usage| tlv(tag::OID, usage))
                .collect();
            [
                signer_key.clone(),
                // Without a word on cA, which is then false.
                extension(oid::BASIC_CONSTRAINTS, true, &tlv(tag::SEQUENCE, &[])),
                extension(oid::KEY_USAGE, true, DIGITAL_SIGNATURE),
                extension(oid::EXTENDED_KEY_USAGE, false, &tlv(tag::SEQUENCE, &usages)),
            ]
            .concat()
        };
        Self {
            signature_algorithm: signature_algorithm(key.public_key().kind()),
            issuer: facts.subject.clone(),
            workload_extensions: extensions(&[oid::SERVER_AUTH, oid::CLIENT_AUTH]),
            server_extensions: extensions(&[oid::SERVER_AUTH]),
            signer_key,
        }
    }

    /// A signed leaf, whose subject is empty.
    pub(crate) fn write(
        &self,
        purpose: Purpose,
        names: &[Name<'_>],
        subject_key: &PublicKey,
        validity: Validity,
        serial: &[u8],
        key: &PrivateKey,
    ) -> Result<Vec<u8>, SignError> {
        let mut extensions = alternative_names(names);
        extensions.extend_from_slice(match purpose {
            Purpose::Workload => &self.workload_extensions,
            Purpose::Server => &self.server_extensions,
        });
        let subject = Subject {
            name: EMPTY_NAME,
            key: subject_key,
            extensions: &extensions,
        };
        self.sign(&subject, validity, serial, key)
    }

    /// A signed intermediate, which signs leaves of a trust domain.
    pub(crate) fn write_intermediate(
        &self,
        trust_domain: &TrustDomain,
        subject_key: &PublicKey,
        validity: Validity,
        serial: &[u8],
        key: &PrivateKey,
    ) -> Result<Vec<u8>, SignError> {
        let name = [
            attribute(oid::ORGANIZATION, trust_domain.as_str()),
            attribute(oid::COMMON_NAME, INTERMEDIATE_NAME),
        ];
        let uri = tlv(tag::URI, trust_domain.id().as_str().as_bytes());
        let identifier = tlv(tag::OCTET_STRING, &key_identifier(subject_key));
        let extensions = [
            self.signer_key.clone(),
            extension(oid::SUBJECT_KEY_IDENTIFIER, false, &identifier),
            extension(oid::BASIC_CONSTRAINTS, true, SIGNS_LEAVES),
            extension(oid::KEY_USAGE, true, SIGNING),
            // Not critical: the subject has a name besides.
            extension(oid::ALTERNATIVE_NAMES, false, &tlv(tag::SEQUENCE, &uri)),
        ];
        let subject = Subject {
            name: &tlv(tag::SEQUENCE, &name.concat()),
            key: subject_key,
            extensions: &extensions.concat(),
        };
        self.sign(&subject, validity, serial, key)
    }

    fn sign(
        &self,
        subject: &Subject<'_>,
        validity: Validity,
        serial: &[u8],
        key: &PrivateKey,
    ) -> Result<Vec<u8>, SignError> {
        let mut validity_content = Vec::with_capacity(32);
        write_time(&mut validity_content, validity.not_before)?;
        write_time(&mut validity_content, validity.not_after)?;

        let mut content = Vec::with_capacity(1024);
        content.extend_from_slice(VERSION_3);
        write_positive_integer(&mut content, serial);
        content.extend_from_slice(&self.signature_algorithm);
        content.extend_from_slice(&self.issuer);
        write_tlv(&mut content, tag::SEQUENCE, &validity_content);
        content.extend_from_slice(subject.name);
        content.extend_from_slice(subject.key.as_spki());
        let extensions = tlv(tag::SEQUENCE, subject.extensions);
        write_tlv(&mut content, tag::EXTENSIONS, &extensions);

        let mut certificate = tlv(tag::SEQUENCE, &content);
        let mut signature = vec![0];
        signature.extend_from_slice(&key.sign(&certificate)?);
        certificate.extend_from_slice(&self.signature_algorithm);
        write_tlv(&mut certificate, tag::BIT_STRING, &signature);
        Ok(tlv(tag::SEQUENCE, &certificate))
    }
}

/// Whom a certificate is for, encoded.
struct Subject<'a> {
    name: &'a [u8],
    key: &'a PublicKey,
    extensions: &'a [u8],
}

/// One part of a name (4.1.2.4).
fn attribute(oid: &[u8], text: &str) -> Vec<u8> {
    let value = [tlv(tag::OID, oid), tlv(tag::UTF8_STRING, text.as_bytes())];
    tlv(tag::SET, &tlv(tag::SEQUENCE, &value.concat()))
}

/// Any number that tells keys apart will do (4.2.1.2): the first 160 bits of a
/// SHA-256, as RFC 7093 has it.
fn key_identifier(key: &PublicKey) -> Vec<u8> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_spki());
    digest.as_ref()[..20].to_vec()
}

fn signature_algorithm(kind: KeyKind) -> Vec<u8> {
    let (oid, parameters) = match kind {
        KeyKind::EcdsaP256 => (oid::ECDSA_SHA256, &[][..]),
        KeyKind::EcdsaP384 => (oid::ECDSA_SHA384, &[][..]),
        KeyKind::Rsa { .. } => (oid::RSA_SHA256, NULL),
    };
    let content = [tlv(tag::OID, oid), parameters.to_vec()].concat();
    tlv(tag::SEQUENCE, &content)
}

/// Critical, because the subject is empty (4.2.1.6).
fn alternative_names(names: &[Name<'_>]) -> Vec<u8> {
    let mut content = Vec::with_capacity(128);
    for name in names {
        match name {
            Name::Uri(uri) => write_tlv(&mut content, tag::URI, uri.as_bytes()),
            Name::Dns(name) => write_tlv(&mut content, tag::DNS_NAME, name.as_bytes()),
            Name::Ip(IpAddr::V4(ip)) => write_tlv(&mut content, tag::IP_ADDRESS, &ip.octets()),
            Name::Ip(IpAddr::V6(ip)) => write_tlv(&mut content, tag::IP_ADDRESS, &ip.octets()),
        }
    }
    extension(oid::ALTERNATIVE_NAMES, true, &tlv(tag::SEQUENCE, &content))
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut content = tlv(tag::OID, oid);
    // DER leaves a default out, and `false` is one.
    if critical {
        write_tlv(&mut content, tag::BOOLEAN, &[0xff]);
    }
    write_tlv(&mut content, tag::OCTET_STRING, value);
    tlv(tag::SEQUENCE, &content)
}

/// Two digits of the year until 2049, four from then on (4.1.2.5).
fn write_time(out: &mut Vec<u8>, time: SystemTime) -> Result<(), SignError> {
    let time: OffsetDateTime = date(time)?;
    let year = u16::try_from(time.year()).map_err(|_| SignError::Time)?;
    let century = u8::try_from(year / 100).map_err(|_| SignError::Time)?;
    let kind = match year {
        1950..2050 => tag::UTC_TIME,
        ..10_000 => tag::GENERALIZED_TIME,
        _ => return Err(SignError::Time),
    };
    let mut text = Vec::with_capacity(15);
    let mut two_digits = |number: u8| text.extend([b'0' + number / 10, b'0' + number % 10]);
    if kind == tag::GENERALIZED_TIME {
        two_digits(century);
    }
    two_digits((year % 100) as u8);
    for part in [
        time.month().into(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
    ] {
        two_digits(part);
    }
    text.push(b'Z');
    write_tlv(out, kind, &text);
    Ok(())
}

/// RSAPublicKey (RFC 8017, A.1.1), from big-endian numbers.
pub(crate) fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let mut numbers = Vec::new();
    write_positive_integer(&mut numbers, modulus);
    write_positive_integer(&mut numbers, exponent);
    tlv(tag::SEQUENCE, &numbers)
}

/// An integer in its shortest form: no zero byte in front but the one that keeps
/// it positive.
fn write_positive_integer(out: &mut Vec<u8>, big_endian: &[u8]) {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = &big_endian[zeros..];
    if digits.first().is_none_or(|first| first & 0x80 != 0) {
        write_tlv(out, tag::INTEGER, &[&[0], digits].concat());
    } else {
        write_tlv(out, tag::INTEGER, digits);
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 4);
    write_tlv(&mut out, tag, content);
    out
}

/// Tag, length in its shortest form (X.690, 10.1), content.
fn write_tlv(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        out.push(0x80 | (bytes.len() - zeros) as u8);
        out.extend_from_slice(&bytes[zeros..]);
    }
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn lengths_are_written_in_their_shortest_form() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65_536, &[4, 0x83, 1, 0, 0]),
        ] {
            let der = tlv(tag::OCTET_STRING, &vec![7; length]);
            assert_eq!(&der[..head.len()], head);
            assert_eq!(der.len(), head.len() + length);
        }
    }

    #[test]
    fn integers_are_positive_and_as_short_as_can_be() {
        for (bytes, written) in [
            (&[0x7f, 1][..], &[2, 2, 0x7f, 1][..]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0, 0, 1], &[2, 1, 1]),
            (&[0, 0x80], &[2, 2, 0, 0x80]),
            (&[0, 0], &[2, 1, 0]),
        ] {
            let mut der = Vec::new();
            write_positive_integer(&mut der, bytes);
            assert_eq!(der, written);
        }
    }

    #[test]
    fn years_have_two_digits_until_2049_and_four_from_then_on() {
        for (seconds, text) in [
            (0, "700101000000Z"),
            (2_524_607_999, "491231235959Z"),
            (2_524_608_000, "20500101000000Z"),
            (253_402_300_799, "99991231235959Z"),
        ] {
            let mut der = Vec::new();
            write_time(&mut der, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
            assert_eq!(&der[2..], text.as_bytes());
        }
        let too_late = UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        assert!(write_time(&mut Vec::new(), too_late).is_err());
    }
}
