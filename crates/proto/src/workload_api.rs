//! The SPIFFE Workload API, between a sidecar and its application
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>).

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

pub use crate::generated::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
pub use crate::generated::workload_api::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
pub use crate::generated::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svid, X509svidRequest, X509svidResponse,
};

/// The metadata that every request must have, and its value: who can make a
/// server fetch an address of their choice cannot make it send this
/// (SPIFFE Workload Endpoint, 3).
pub const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// The claims of a token, as the wire has them.
pub fn claims(claims: &serde_json::Map<String, serde_json::Value>) -> Struct {
    let fields = claims
        .iter()
        .map(|(name, claim)| (name.clone(), value(claim)));
    Struct {
        fields: fields.collect(),
    }
}

/// All numbers become those of JSON (`google.protobuf.Value`).
fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(*flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(value).collect(),
        }),
        Json::Object(members) => Kind::StructValue(claims(members)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_of_every_kind_reach_the_application() {
        let json = json!({
            "sub": "spiffe://a/b", "exp": 1_800_000_000, "aud": ["x", "y"],
            "admin": false, "nothing": null, "deep": {"ratio": 0.5},
        });
        let wire = claims(json.as_object().unwrap());
        let kind = |name: &str| wire.fields[name].kind.clone().unwrap();
        assert_eq!(kind("sub"), Kind::StringValue("spiffe://a/b".into()));
        assert_eq!(kind("exp"), Kind::NumberValue(1_800_000_000.0));
        assert_eq!(kind("admin"), Kind::BoolValue(false));
        assert_eq!(kind("nothing"), Kind::NullValue(0));
        let Kind::ListValue(audiences) = kind("aud") else {
            panic!("{wire:?}");
        };
        assert_eq!(audiences.values.len(), 2);
        let Kind::StructValue(deep) = kind("deep") else {
            panic!("{wire:?}");
        };
        assert_eq!(deep.fields["ratio"].kind, Some(Kind::NumberValue(0.5)));
    }
}
