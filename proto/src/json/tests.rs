//! The checker against RFC 8259's grammar, against serde_json, and on large texts.

use proptest::prelude::*;

use super::*;

#[test]
fn the_grammar_is_exact() {
    for text in [
        "0",
        "-0",
        "10",
        "1.5",
        "1e5",
        "1E+5",
        "1e-5",
        "-1.25e999",
        "18446744073709551616",
        "true",
        "false",
        "null",
        "\"\"",
        "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"\u{7f}é\"",
        "[]",
        "{}",
        " [ ] ",
        "\t{\r\n} ",
        "[1,[2,{}],{\"a\":[]}]",
        "{\"a\":1,\"a\":2}",
        "[ 1 , 2 ]",
        "{ \"a\" : { \"b\" : null } , \"c\" : [ ] }",
    ] {
        assert_eq!(check(text.as_bytes(), 8), Ok(()), "{text}");
    }
    for (text, at) in [
        ("", 0),
        (" ", 1),
        ("x", 0),
        ("tru", 0),
        ("True", 0),
        ("nul", 0),
        ("truex", 4),
        ("1 2", 2),
        ("[1] x", 4),
        ("01", 1),
        ("-", 1),
        ("+1", 0),
        (".5", 0),
        ("1.", 2),
        ("1.e5", 2),
        ("1e", 2),
        ("1e+", 3),
        ("0x1", 1),
        ("NaN", 0),
        ("Infinity", 0),
        ("-Infinity", 1),
        ("'a'", 0),
        ("\"", 1),
        ("\"a", 2),
        ("\"\\", 1),
        ("\"\\x\"", 1),
        ("\"\\u12\"", 1),
        ("\"\\u12g4\"", 1),
        ("\"\\u", 1),
        ("\"\n\"", 1),
        ("\"\u{0}\"", 1),
        ("[", 1),
        ("[1", 2),
        ("[1,", 3),
        ("[1,]", 3),
        ("[,1]", 1),
        ("[1 2]", 3),
        ("[1}", 2),
        ("]", 0),
        ("}", 0),
        ("{", 1),
        ("{]", 1),
        ("{\"a\"", 4),
        ("{\"a\":", 5),
        ("{\"a\":}", 5),
        ("{\"a\":1", 6),
        ("{\"a\":1,}", 7),
        ("{a:1}", 1),
        ("{1:1}", 1),
        ("{\"a\" 1}", 5),
        ("{\"a\":1]", 6),
        ("{,}", 1),
        ("/**/1", 0),
        ("\u{feff}1", 0),
        ("\u{a0}1", 0),
        ("[1]]", 3),
    ] {
        assert_eq!(check(text.as_bytes(), 8), Err(JsonError::Syntax { at }), "{text}");
    }
}

#[test]
fn nesting_is_bounded_by_the_limit_and_by_the_checker() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let objects = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
    assert_eq!(check(nested(128).as_bytes(), 128), Ok(()));
    assert_eq!(check(nested(129).as_bytes(), 128), Err(JsonError::TooDeep { at: 128, max: 128 }));
    assert_eq!(check(objects(128).as_bytes(), 128), Ok(()));
    assert_eq!(check(objects(129).as_bytes(), 128), Err(JsonError::TooDeep { at: 640, max: 128 }));
    assert_eq!(check(nested(DEPTH_MAX).as_bytes(), usize::MAX), Ok(()));
    assert!(matches!(check(nested(DEPTH_MAX + 1).as_bytes(), usize::MAX), Err(JsonError::TooDeep { .. })));
    assert_eq!(check(b"1", 0), Ok(()));
    assert_eq!(check(b"[]", 0), Err(JsonError::TooDeep { at: 0, max: 0 }));
    let split = |depth: usize| split_array(&nested(depth).into(), 128);
    assert!(split(128).is_ok());
    assert!(matches!(split(129), Err(JsonError::TooDeep { .. })));
}

#[test]
fn arrays_split_into_slices_of_the_same_bytes() {
    let text = Bytes::from_static(b" [ \"a,]\" ,{\"b\":[1,2]} , -1.5e3,[ ], null ] ");
    let parts = split_array(&text, 8).unwrap();
    assert_eq!(parts, [&b"\"a,]\""[..], b"{\"b\":[1,2]}", b"-1.5e3", b"[ ]", b"null"]);
    assert_eq!(parts[0].as_ptr(), text[3..].as_ptr());
    assert_eq!(split_array(&Bytes::from_static(b"[ ]"), 8), Ok(vec![]));
    for (text, error) in [
        ("{}", JsonError::NotAnArray),
        ("", JsonError::NotAnArray),
        ("[1", JsonError::Syntax { at: 2 }),
        ("[1,]", JsonError::Syntax { at: 3 }),
        ("[,]", JsonError::Syntax { at: 1 }),
        ("[1]]", JsonError::Syntax { at: 3 }),
    ] {
        assert_eq!(split_array(&Bytes::copy_from_slice(text.as_bytes()), 8), Err(error), "{text}");
    }
}

#[test]
fn the_first_element_comes_off_an_array() {
    for (array, first, rest) in
        [("[1]", "1", ""), (" [ \"a,\" , [2] ,3 ] ", "\"a,\"", "[2] ,3"), ("[[1,2],3]", "[1,2]", "3")]
    {
        assert_eq!(split_first(array.as_bytes()), Some((first.as_bytes(), rest.as_bytes())), "{array}");
        assert_eq!(first_element(array.as_bytes()), Some(first.as_bytes()));
    }
    assert_eq!(split_first(b" [ ] "), None);
    assert_eq!(first_element(b"[]"), None);
}

#[test]
fn objects_give_their_members_in_order() {
    let text = br#" { "a" : 1 , "b":{"c":[]}, "a":"x" } "#;
    let members: Vec<_> =
        members(text, 8).map(|member| member.map(|m| (&text[m.key], &text[m.value])).unwrap()).collect();
    assert_eq!(members, [(&b"\"a\""[..], &b"1"[..]), (b"\"b\"", b"{\"c\":[]}"), (b"\"a\"", b"\"x\"")]);
    for (text, error) in [
        ("[]", JsonError::NotAnObject),
        ("{\"a\":1,}", JsonError::Syntax { at: 7 }),
        ("{1:1}", JsonError::Syntax { at: 1 }),
        ("{\"a\":1}}", JsonError::Syntax { at: 7 }),
    ] {
        assert_eq!(super::members(text.as_bytes(), 8).find_map(Result::err), Some(error), "{text}");
    }
}

#[test]
fn escapes_are_undone_and_lone_surrogates_survive_as_bytes() {
    assert_eq!(unescape_str(br#""plain""#).as_deref(), Some("plain"));
    assert!(matches!(unescape_str(br#""plain""#), Some(Cow::Borrowed(_))));
    assert_eq!(unescape_str(br#""\u0063onn\"\ud83d\ude00""#).as_deref(), Some("conn\"😀"));
    assert_eq!(unescape_str(br#""\ud800""#), None);
    assert_eq!(unescape(br#""\ud800""#).unwrap().len(), 3);
    assert_eq!(unescape(b"1"), None);
}

#[test]
fn large_texts_of_every_awkward_shape_are_read_once() {
    const LEN: usize = 1_000_000;
    let shapes = [
        format!("[{}1]", "1,".repeat(LEN / 2)),
        format!("[{}[]]", "[],".repeat(LEN / 3)),
        format!("{{{}\"a\":1}}", "\"a\":1,".repeat(LEN / 6)),
        format!("\"{}\"", "\\u0041".repeat(LEN / 6)),
        format!("{}1", " ".repeat(LEN)),
        "9".repeat(LEN),
        format!("[{}{}]", " ".repeat(LEN / 2), " ".repeat(LEN / 2)),
    ];
    for shape in shapes {
        assert_eq!(check(shape.as_bytes(), 128), Ok(()));
        let shape = Bytes::from(shape);
        let _ = split_array(&shape, 128);
        let _ = members(&shape, 128).count();
    }
    assert!(matches!(check("[".repeat(LEN).as_bytes(), 128), Err(JsonError::TooDeep { .. })));
    assert!(check("{\"a\":".repeat(LEN / 5).as_bytes(), 128).is_err());
}

/// Whether serde_json takes `text` as one value, its values not looked at. That is the grammar alone:
/// the same acceptance as ours, except that it has no depth limit here.
fn serde_accepts(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Texts that are nearly JSON: pieces of it in any order.
fn almost_json() -> impl Strategy<Value = String> {
    const PIECES: [&str; 40] = [
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"a\"",
        "\"",
        "\\",
        "\\u12",
        "\\u1234",
        "\\n",
        "true",
        "false",
        "null",
        "nul",
        "0",
        "1",
        "-",
        "+",
        ".",
        "e",
        "E5",
        "1.5",
        "-0",
        "1e999",
        " ",
        "\n",
        "\t",
        "é",
        "\u{1}",
        "\u{7f}",
        "\"a\":1",
        "[]",
        "{}",
        "\"\\ud800\"",
        "/",
        "'",
        "x",
        "\u{feff}",
    ];
    proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..12).prop_map(|pieces| pieces.concat())
}

/// Well-formed JSON of every shape, with white space wherever it may stand.
fn well_formed() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\"(\\\\u[0-9a-fA-F]{4}|\\\\[\"\\\\/bfnrt]|[a-z])*\"",
    ];
    let key = "\"[a-z]{0,3}\"";
    scalar.prop_recursive(6, 64, 6, move |inner| {
        let space = "[ \t\r\n]{0,2}";
        let list = proptest::collection::vec((space, inner.clone(), space), 0..6);
        let members = proptest::collection::vec((space, key, space, inner), 0..6);
        prop_oneof![
            list.prop_map(|items| {
                let items: Vec<_> = items.into_iter().map(|(a, b, c)| a + &b + &c).collect();
                format!("[{}]", items.join(","))
            }),
            members.prop_map(|items| {
                let items: Vec<_> =
                    items.into_iter().map(|(a, b, c, d)| format!("{a}{b}{c}:{a}{d}{c}")).collect();
                format!("{{{}}}", items.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_pass_or_fail(text: Vec<u8>) {
        let _ = check(&text, 128);
        let _ = split_array(&Bytes::from(text.clone()), 128);
        let _ = members(&text, 128).count();
        let _ = unescape(&text);
    }

    #[test]
    fn near_json_is_judged_as_serde_json_judges_it(text in almost_json()) {
        prop_assert_eq!(check(text.as_bytes(), 128).is_ok(), serde_accepts(&text), "{}", text);
    }

    #[test]
    fn well_formed_json_passes_and_one_changed_byte_is_judged_alike(
        text in well_formed(), at: prop::sample::Index, byte in 0x01_u8..0x7f,
    ) {
        prop_assert_eq!(check(text.as_bytes(), 128), Ok(()), "{}", text);
        let mut changed = text.into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        if let Ok(changed) = String::from_utf8(changed) {
            prop_assert_eq!(check(changed.as_bytes(), 128).is_ok(), serde_accepts(&changed), "{}", changed);
        }
    }

    #[test]
    fn splitting_and_joining_gives_the_same_values(items in proptest::collection::vec(well_formed(), 0..5)) {
        let text = Bytes::from(format!("[{}]", items.join(",")));
        let parts = split_array(&text, 128).unwrap();
        prop_assert_eq!(parts.len(), items.len());
        for (part, item) in parts.iter().zip(&items) {
            prop_assert_eq!(&part[..], item.as_bytes());
        }
    }

    #[test]
    fn strings_come_back_from_their_escapes(text: String) {
        let mut raw = Vec::new();
        push_string(&mut raw, &text);
        prop_assert_eq!(check(&raw, 1), Ok(()));
        let back = unescape_str(&raw);
        prop_assert_eq!(back.as_deref(), Some(text.as_str()));
    }
}
