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
pub(crate) fn difference(from: &Value, to: Value) -> Patch {
    let mut writer = Writer {
        path: Vec::new(),
        operations: Vec::new(),
    };
    writer.compare(from, to);
    Patch(writer.operations)
}

struct Writer<'a> {
    /// Where in the document the comparison is.
    path: Vec<Step<'a>>,
    operations: Vec<PatchOperation>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Place(usize),
}

impl<'a> Writer<'a> {
    fn compare(&mut self, from: &'a Value, to: Value) {
        match (from, to) {
            (Value::Object(from), Value::Object(to)) => self.compare_objects(from, to),
            (Value::Array(from), Value::Array(to)) => self.compare_lists(from, to),
            (from, to) if *from != to => self.replace(to),
            _ => {}
        }
    }

    fn compare_objects(&mut self, from: &'a Map<String, Value>, to: Map<String, Value>) {
        // Most objects have not changed, and none of their fields need be
        // looked up.
        if from.len() == to.len() && from.keys().eq(to.keys()) {
            for ((field, present), (_, value)) in from.iter().zip(to) {
                self.at(Step::Field(field), |writer| writer.compare(present, value));
            }
            return;
        }
        for field in from.keys().filter(|field| !to.contains_key(*field)) {
            self.remove(Step::Field(field));
        }
        for (field, value) in to {
            match from.get_key_value(&field) {
                Some((field, present)) => {
                    self.at(Step::Field(field), |writer| writer.compare(present, value));
                }
                None => self.add(Step::Field(&field), value),
            }
        }
    }

    /// Compares item by item, by name; where items have no names, share one, or
    /// change their order, the list as a whole.
    fn compare_lists(&mut self, from: &'a [Value], to: Vec<Value>) {
        if is_named_alike(from, &to) {
            for (place, (present, item)) in from.iter().zip(to).enumerate() {
                self.at(Step::Place(place), |writer| writer.compare(present, item));
            }
            return;
        }
        match Alignment::new(from, &to) {
            Some(alignment) => self.compare_aligned(from, to, &alignment),
            None if from != to.as_slice() => self.replace(Value::Array(to)),
            None => {}
        }
    }

    fn compare_aligned(&mut self, from: &'a [Value], to: Vec<Value>, alignment: &Alignment) {
        for place in alignment.removed.iter().rev() {
            self.remove(Step::Place(*place));
        }
        for (place, (item, present)) in to.into_iter().zip(&alignment.present).enumerate() {
            let step = Step::Place(place);
            match present {
                Some(present) => self.at(step, |writer| writer.compare(&from[*present], item)),
                None => self.add(step, item),
            }
        }
    }

    /// Works a step deeper in the document.
    fn at(&mut self, step: Step<'a>, work: impl FnOnce(&mut Self)) {
        self.path.push(step);
        work(self);
        self.path.pop();
    }

    fn add(&mut self, step: Step<'_>, value: Value) {
        let path = self.pointer(Some(step));
        self.operations
            .push(PatchOperation::Add(AddOperation { path, value }));
    }

    fn replace(&mut self, value: Value) {
        let path = self.pointer(None);
        self.operations
            .push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    fn remove(&mut self, step: Step<'_>) {
        let path = self.pointer(Some(step));
        self.operations
            .push(PatchOperation::Remove(RemoveOperation { path }));
    }

    /// Where the comparison is, or a step deeper, as RFC 6901 writes it.
    fn pointer(&self, deeper: Option<Step<'_>>) -> PointerBuf {
        let mut text = String::with_capacity(POINTER_LENGTH);
        for step in self.path.iter().copied().chain(deeper) {
            text.push('/');
            match step {
                Step::Field(field) => text.push_str(Token::new(field).encoded()),
                Step::Place(place) => text.push_str(&place.to_string()),
            }
        }
        PointerBuf::parse(text).expect("every step is behind a slash and encoded")
    }
}

/// The length of most pointers into a pod, in bytes.
const POINTER_LENGTH: usize = 80;

/// Whether two lists have the same names in the same order.
fn is_named_alike(from: &[Value], to: &[Value]) -> bool {
    from.len() == to.len()
        && from
            .iter()
            .zip(to)
            .all(|(from, to)| !name(from).is_empty() && name(from) == name(to))
}

/// How the items of one list become those of another.
struct Alignment {
    /// Places in the first list of the items that the second does not have.
    removed: Vec<usize>,
    /// For each item of the second its place in the first, where it has one.
    present: Vec<Option<usize>>,
}

impl Alignment {
    /// Nothing where the items have no names, share one, or those that stay
    /// change their order.
    fn new(from: &[Value], to: &[Value]) -> Option<Self> {
        let (from_places, to_places) = (places(from)?, places(to)?);
        let removed = (0..from.len())
            .filter(|place| !to_places.contains_key(name(&from[*place])))
            .collect();
        let present: Vec<_> = to
            .iter()
            .map(|item| from_places.get(name(item)).copied())
            .collect();
        let keeps_order = present.iter().flatten().is_sorted();
        keeps_order.then_some(Self { removed, present })
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
            json_patch::patch(&mut document, &difference(&from, to.clone())).unwrap();
            prop_assert_eq!(document, to);
        }

        #[test]
        fn equal_documents_have_no_difference(document in any_document()) {
            prop_assert!(difference(&document, document.clone()).0.is_empty());
        }
    }

    #[test]
    fn an_item_in_front_is_one_operation() {
        let from = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let to = json!({"containers": [{"name": "x"}, {"name": "a"}, {"name": "b", "k": 1}]});
        let patch = serde_json::to_value(difference(&from, to)).unwrap();
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
        let patch = difference(&json!({}), json!({"a/b~c": 1}));
        assert_eq!(patch.0[0].path().as_str(), "/a~1b~0c");
    }
}
