use super::*;

/// The stream with the values of this kind given a field.
fn marked(text: &str, kind: &str) -> String {
    Stream::parse(text)
        .unwrap()
        .edited(|_, value| {
            let is_wanted = value["kind"] == kind;
            if is_wanted {
                value["marked"] = Value::from("yes");
            }
            Ok(is_wanted)
        })
        .unwrap()
}

#[test]
fn what_is_not_changed_leaves_as_it_came() {
    for text in [
        "",
        "\n",
        "# only a comment",
        "---\n---\n",
        "kind: A",
        "kind: A\n",
        "\u{feff}kind: A\r\nb:   'x'   # why\r\n---\r\nkind: B\r\n",
        "%YAML 1.2\n---\nkind: A\n...\n# between\n%YAML 1.2\n--- # here\nkind: B\n...\n",
        "--- {kind: A}\n---\n\n\n# last",
        "a: |\n  ---\n  text\n--- \nkind: B\n",
        "a: \"x\n\n  --- y\"\n",
        "{\"kind\": \"A\"}\n{\"kind\":   \"B\"}",
        "---\n{\"kind\": \"A\",\n\t\"x\": 1}\n---\nkind: B",
        "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n",
    ] {
        assert_eq!(marked(text, "nothing"), text, "{text:?}");
    }
}

#[test]
fn a_changed_document_keeps_its_heading_and_its_neighbours() {
    let text = "# license\n---\n# about A\nkind: A\nx: 'yes' # why\n---\nkind:   B # same\n";
    let expected =
        "# license\n---\n# about A\nkind: A\nx: \"yes\"\nmarked: \"yes\"\n---\nkind:   B # same\n";
    assert_eq!(marked(text, "A"), expected);
}

#[test]
fn a_document_on_its_markers_line_moves_below_it() {
    assert_eq!(
        marked("--- {kind: A}\n", "A"),
        "---\nkind: A\nmarked: \"yes\"\n"
    );
}

#[test]
fn json_stays_json() {
    let text = "{\"kind\":\"A\"}\n {\"kind\":  \"B\"}\n";
    let marked_a = "{\"kind\":\"A\",\"marked\":\"yes\"}\n {\"kind\":  \"B\"}\n";
    let marked_b = "{\"kind\":\"A\"}\n {\"kind\":\"B\",\"marked\":\"yes\"}\n";
    assert_eq!(marked(text, "A"), marked_a);
    assert_eq!(marked(text, "B"), marked_b);
    let pretty = marked("{\n  \"kind\": \"A\"\n}\n", "A");
    assert_eq!(pretty, "{\n  \"kind\": \"A\",\n  \"marked\": \"yes\"\n}\n");
}

/// Values whose meaning is easily lost on the way through YAML.
#[test]
fn awkward_values_keep_their_meaning() {
    for (written, meant) in [
        ("'yes'", serde_json::json!("yes")),
        ("yes", serde_json::json!(true)),
        ("\"true\"", serde_json::json!("true")),
        ("'0123'", serde_json::json!("0123")),
        ("0644", serde_json::json!(420)),
        ("08", serde_json::json!(8.0)),
        ("1e3", serde_json::json!(1000.0)),
        ("'1e3'", serde_json::json!("1e3")),
        ("12:30:45", serde_json::json!("12:30:45")),
        ("2001-01-01", serde_json::json!("2001-01-01")),
        ("~", serde_json::json!(null)),
        ("'~'", serde_json::json!("~")),
        ("''", serde_json::json!("")),
        ("|\n  a\n   b\n\n", serde_json::json!("a\n b\n")),
        (
            "|-\n  # no comment\n  $(X)",
            serde_json::json!("# no comment\n$(X)"),
        ),
        (">\n  a\n  b\n", serde_json::json!("a b\n")),
        ("\"a\\tb\\u0000\"", serde_json::json!("a\tb\u{0}")),
        ("' leading'", serde_json::json!(" leading")),
        ("[]", serde_json::json!([])),
        ("{}", serde_json::json!({})),
        ("'{{ .Values.x }}'", serde_json::json!("{{ .Values.x }}")),
    ] {
        let read = |text: &str| Stream::parse(text).unwrap().values().next().unwrap()["x"].clone();
        let text = format!("kind: A\nx: {written}\n");
        assert_eq!(read(&text), meant, "{written}");
        assert_eq!(read(&marked(&text, "A")), meant, "{written}");
    }
}

#[test]
fn anchors_and_merge_keys_are_what_they_stand_for() {
    let text = "kind: A\nbase: &base {x: 1, y: 2}\nmore:\n  <<: *base\n  y: 3\n";
    let value = yaml(&marked(text, "A")).unwrap();
    assert_eq!(value["more"], serde_json::json!({"x": 1, "y": 3}));
}

#[test]
fn a_mistake_is_reported_with_its_document_and_line() {
    for (text, parts) in [
        ("kind: A\n---\nkind: B\nx: [1,\n", ["document 2", "line 4"]),
        (
            "---\n# one\n---\nkind: B\nx: 1\nx: 2\n",
            ["document 1", "line 6"],
        ),
        (
            "kind: A\n---\n{\"kind\": \"A\",,}",
            ["document 2", "line 3"],
        ),
        ("x: .inf", ["document 1", "line 1"]),
        ("x: *nobody", ["document 1", "line 1"]),
    ] {
        let error = format!("{:#}", Stream::parse(text).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}

#[test]
fn a_document_that_would_grow_without_end_is_refused() {
    let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let previous = level - 1;
        let items = vec![format!("*a{previous}"); 10].join(", ");
        text.push_str(&format!("b{level}: &a{level} [{items}]\n"));
    }
    assert!(Stream::parse(&text).is_err());
}

#[test]
fn deep_nesting_is_an_error_and_no_crash() {
    assert!(Stream::parse(&"[".repeat(100_000)).is_err());
    assert!(Stream::parse(&"{\"a\":".repeat(100_000)).is_err());
}
