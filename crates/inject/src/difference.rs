//! The difference of two documents as an RFC 6902 patch.
//!
//! Lists of named items (containers, volumes, variables) are compared by name,
//! so that an item added in front is one operation and not a rewriting of all
//! that follow.

use std::collections::HashMap;

use json_patch::AddOperation;
use json_patch::Patch;
use json_patch::PatchOperation;
use json_patch::RemoveOperation;
use json_patch::ReplaceOperation;
use json_patch::jsonptr::PointerBuf;
use json_patch::jsonptr::Token;
use serde_json::Map;
use serde_json::Value;

/// The patch that makes `to` of `from`.
pub(crate) fn difference(from: &Value, to: &Value) -> Patch {
    let mut writer = Writer {
        path: PointerBuf::new(),
        operations: Vec::new(),
    };
    writer.compare(from, to);
    Patch(writer.operations)
}

struct Writer {
    /// Where in the document the comparison is.
    path: PointerBuf,
    operations: Vec<PatchOperation>,
}

impl Writer {
    fn compare(&mut self, from: &Value, to: &Value) {
        match (from, to) {
            (Value::Object(from), Value::Object(to)) => self.compare_objects(from, to),
            (Value::Array(from), Value::Array(to)) if self.compare_named_lists(from, to) => {}
            _ if from != to => self.replace(to.clone()),
            _ => {}
        }
    }

    fn compare_objects(&mut self, from: &Map<String, Value>, to: &Map<String, Value>) {
        for field in from.keys().filter(|field| !to.contains_key(*field)) {
            self.at(field.as_str(), Self::remove);
        }
        for (field, value) in to {
            self.at(field.as_str(), |writer| match from.get(field) {
                Some(present) => writer.compare(present, value),
                None => writer.add(value.clone()),
            });
        }
    }

    /// Compares item by item, by name. False, with nothing written, where the
    /// items have no names, share one, or those that stay change their order.
    fn compare_named_lists(&mut self, from: &[Value], to: &[Value]) -> bool {
        let (Some(from_places), Some(to_places)) = (places(from), places(to)) else {
            return false;
        };
        let staying: Vec<&Value> = from
            .iter()
            .filter(|item| to_places.contains_key(name(item)))
            .collect();
        let same_order = to
            .iter()
            .filter(|item| from_places.contains_key(name(item)))
            .zip(&staying)
            .all(|(to, from)| name(to) == name(from));
        if !same_order {
            return false;
        }
        for (place, item) in from.iter().enumerate().rev() {
            if !to_places.contains_key(name(item)) {
                self.at(place, Self::remove);
            }
        }
        for (place, item) in to.iter().enumerate() {
            self.at(place, |writer| match from_places.get(name(item)) {
                Some(present) => writer.compare(&from[*present], item),
                None => writer.add(item.clone()),
            });
        }
        true
    }

    /// Works a step deeper in the document.
    fn at<'t>(&mut self, token: impl Into<Token<'t>>, work: impl FnOnce(&mut Self)) {
        self.path.push_back(token);
        work(self);
        self.path.pop_back();
    }

    fn add(&mut self, value: Value) {
        let path = self.path.clone();
        self.operations
            .push(PatchOperation::Add(AddOperation { path, value }));
    }

    fn replace(&mut self, value: Value) {
        let path = self.path.clone();
        self.operations
            .push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    fn remove(&mut self) {
        let path = self.path.clone();
        self.operations
            .push(PatchOperation::Remove(RemoveOperation { path }));
    }
}

/// The place of each item by its name; nothing where one has none or two share
/// one.
fn places(items: &[Value]) -> Option<HashMap<&str, usize>> {
    let mut places = HashMap::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        let name = name(item);
        if name.is_empty() || places.insert(name, place).is_some() {
            return None;
        }
    }
    Some(places)
}

/// The name of an item, or nothing in letters: no item of a pod is called that.
fn name(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn any_document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[a~/]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let named = ("[a-e]", inner.clone())
                .prop_map(|(name, value)| json!({"name": name, "value": value}));
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(named, 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a~/]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_one_document_of_the_other(
            from in any_document(),
            to in any_document(),
        ) {
            let mut document = from.clone();
            json_patch::patch(&mut document, &difference(&from, &to)).unwrap();
            prop_assert_eq!(document, to);
        }

        #[test]
        fn equal_documents_have_no_difference(document in any_document()) {
            prop_assert!(difference(&document, &document).0.is_empty());
        }
    }

    #[test]
    fn an_item_in_front_is_one_operation() {
        let from = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let to = json!({"containers": [{"name": "x"}, {"name": "a"}, {"name": "b", "k": 1}]});
        let patch = serde_json::to_value(difference(&from, &to)).unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "add", "path": "/containers/0", "value": {"name": "x"}},
                {"op": "add", "path": "/containers/2/k", "value": 1},
            ])
        );
    }

    #[test]
    fn field_names_are_escaped_in_paths() {
        let patch = difference(&json!({}), &json!({"a/b~c": 1}));
        assert_eq!(patch.0[0].path().as_str(), "/a~1b~0c");
    }
}
