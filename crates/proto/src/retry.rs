//! A refusal for lack of room, and when to come again.
//!
//! It is said twice, because clients differ in what they read: as
//! `grpc-retry-pushback-ms` (gRFC A6), which gRPC's own retries obey, and as
//! `google.rpc.RetryInfo` among the status's details, which people's code reads.

use std::time::Duration;

use prost::Message;
use prost_types::Any;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::generated::rpc::{RetryInfo, Status as RpcStatus};

const PUSHBACK: &str = "grpc-retry-pushback-ms";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
/// The most details that are looked at: a status has one or two.
const MAX_DETAILS: usize = 16;

/// `RESOURCE_EXHAUSTED`: come again after `delay`, to the millisecond.
pub fn too_busy(message: &str, delay: Duration) -> Status {
    let milliseconds = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    let retry = RetryInfo {
        retry_delay: prost_types::Duration::try_from(delay).ok(),
    };
    let details = RpcStatus {
        code: i32::from(Code::ResourceExhausted),
        message: message.to_owned(),
        details: vec![Any {
            type_url: RETRY_INFO.to_owned(),
            value: retry.encode_to_vec(),
        }],
    };
    let mut metadata = MetadataMap::new();
    metadata.insert(PUSHBACK, MetadataValue::from(milliseconds));
    let details = details.encode_to_vec().into();
    Status::with_details_and_metadata(Code::ResourceExhausted, message, details, metadata)
}

/// How long a server asks to be left alone, where it says so: the longer of the
/// two where it says it twice.
///
/// A pushback that is negative or no number forbids to come again at all (gRFC
/// A6). A workload cannot do without its certificate, so that this is the longest
/// delay there is; whoever waits has bounds of its own.
pub fn delay(status: &Status) -> Option<Duration> {
    let pushback = status.metadata().get(PUSHBACK).map(|value| {
        let milliseconds = value.to_str().ok().and_then(|text| text.parse().ok());
        milliseconds.map_or(Duration::MAX, Duration::from_millis)
    });
    pushback.max(retry_info(status.details()))
}

fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let mut details = status.details.iter().take(MAX_DETAILS);
    let info = details.find(|detail| detail.type_url == RETRY_INFO)?;
    let info = RetryInfo::decode(info.value.as_slice()).ok()?;
    info.retry_delay?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(2500);

    #[test]
    fn a_client_reads_the_delay_that_a_server_wrote() {
        let status = too_busy("later", DELAY);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(delay(&status), Some(DELAY));
        assert_eq!(delay(&Status::unavailable("gone")), None);
    }

    #[test]
    fn either_form_alone_is_understood() {
        let both = too_busy("later", DELAY);
        let mut metadata = MetadataMap::new();
        metadata.insert(PUSHBACK, "2500".parse().unwrap());
        let pushback = Status::with_metadata(Code::Unavailable, "", metadata);
        assert_eq!(delay(&pushback), Some(DELAY));
        let details = both.details().to_vec().into();
        let info = Status::with_details(Code::Unavailable, "", details);
        assert_eq!(delay(&info), Some(DELAY));
    }

    #[test]
    fn a_server_that_never_wants_to_be_asked_again_is_understood() {
        for text in ["-1", "soon", ""] {
            let mut metadata = MetadataMap::new();
            metadata.insert(PUSHBACK, text.parse().unwrap());
            let status = Status::with_metadata(Code::ResourceExhausted, "", metadata);
            assert_eq!(delay(&status), Some(Duration::MAX), "{text:?}");
        }
    }

    #[test]
    fn details_that_are_garbage_say_nothing() {
        let status = Status::with_details(Code::Unavailable, "", vec![0xff; 64].into());
        assert_eq!(delay(&status), None);
        let negative = RetryInfo {
            retry_delay: Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
        };
        let details = RpcStatus {
            details: vec![Any {
                type_url: RETRY_INFO.to_owned(),
                value: negative.encode_to_vec(),
            }],
            ..RpcStatus::default()
        };
        let details = details.encode_to_vec().into();
        assert_eq!(delay(&Status::with_details(Code::Ok, "", details)), None);
    }
}
