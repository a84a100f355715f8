//! Who is let in as whom.

use mesh_proto::shard::ProductRules;
use serde_json::json;

use super::testing::{Asking, identified};
use super::*;

mod tokens;

use tokens::{good_claims, signed};

/// `rooms` is the default, `chat` is a second one, `site` a proxy.
struct Door {
    products: Products,
    identity: Identity,
}

/// The same sources for all three.
fn door(required: bool, sources: impl Fn() -> Vec<UidSource>) -> Door {
    let rooms = Product::rooms(ProductRules::open("rooms"));
    let others = [Product::rooms(ProductRules::open("chat")), Product::proxy("site")];
    let products = Products::new(rooms, others, false);
    let policy =
        |name: &str| (Arc::from(name), UidPolicy { sources: sources(), required, believes_clients: true });
    let identity = Identity::new(["rooms", "chat", "site"].map(policy), 128);
    Door { products, identity }
}

/// Tokens under the keys of these tests, from the usual places.
fn with_keys(keys: TokenKeys, settings: JwtSettings) -> Door {
    let policy = Arc::new(JwtPolicy::new(keys, settings));
    let places = || vec![TokenPlace::Bearer, TokenPlace::Query("token".into())];
    door(true, || vec![UidSource::Jwt(policy.clone(), places())])
}

fn with_jwt(settings: JwtSettings) -> Door {
    with_keys(tokens::secret(), settings)
}

/// `?uid=` for all.
fn with_query() -> Door {
    door(true, || vec![UidSource::Query("uid".into())])
}

impl Door {
    /// `product/uid`, or the refusal's code.
    fn admitted(&self, asking: &Asking) -> Result<String, &'static str> {
        match testing::admitted(&self.products, &self.identity, asking).client.admission {
            Ok(Admission { product, uid: Uid::Known(uid) }) => Ok(format!("{}/{uid}", product.name)),
            Ok(Admission { uid: Uid::ByAuth(_), .. }) => panic!("only Socket.IO has that"),
            Err(refusal) => {
                let codes = [UID_REQUIRED, UID_INVALID, PRODUCT_UNKNOWN];
                Err(codes.into_iter().find(|code| *code == refusal.code).expect("a code there is"))
            }
        }
    }

    /// The refusal of a token.
    fn refused(&self, token: &str) -> Refusal {
        let asking = Asking::by_query(&format!("token={token}"));
        testing::admitted(&self.products, &self.identity, &asking).client.admission.unwrap_err()
    }

    /// The uid of a proxied request, or the refusal's status and code.
    fn identified(&self, asking: &Asking) -> Result<Option<String>, (u16, String)> {
        let asked = Asking { target: format!("{}&product=site", asking.target), ..asking.clone() };
        match identified(&self.products, &self.identity, &asked) {
            Ok(identified) => Ok(identified.uid.map(|uid| uid.to_string())),
            Err(denied) => Err((denied.status, denied.code.into_owned())),
        }
    }
}

#[test]
fn on_loopback_the_uid_parameter_is_believed() {
    let door = with_query();
    let long = format!("uid={}", "x".repeat(129));
    for (query, expected) in [
        ("uid=alice", Ok("rooms/alice")),
        ("product=chat&uid=al%20ice", Ok("chat/al ice")),
        ("product=&uid=a", Ok("rooms/a")),
        ("product=nope&uid=a", Err(PRODUCT_UNKNOWN)),
        ("product=%ff&uid=a", Err(PRODUCT_UNKNOWN)),
        ("", Err(UID_REQUIRED)),
        ("uid=", Err(UID_REQUIRED)),
        ("uid=a%00b", Err(UID_INVALID)),
        ("uid=a%0Ab", Err(UID_INVALID)),
        ("uid=%ff", Err(UID_INVALID)),
        (&long, Err(UID_INVALID)),
    ] {
        let got = door.admitted(&Asking::by_query(query));
        assert_eq!(got.as_deref().map_err(|code| *code), expected, "{query}");
    }
}

#[test]
fn uids_that_look_the_same_are_the_same() {
    let door = with_query();
    let composed = door.admitted(&Asking::by_query("uid=caf%C3%A9"));
    assert_eq!(composed.as_deref(), Ok("rooms/caf\u{e9}"));
    assert_eq!(door.admitted(&Asking::by_query("uid=cafe%CC%81")), composed);
    assert_eq!(
        door.admitted(&Asking::by_query("uid=%E2%84%AB")).as_deref(),
        Ok("rooms/\u{c5}"),
        "a sign for a letter"
    );
    // But not trimmed, and with its case.
    assert_eq!(door.admitted(&Asking::by_query("uid=%20Alice%20")).as_deref(), Ok("rooms/ Alice "));
    // The length counts after that: 64 letters in 192 bytes are 128.
    let fits = "e%CC%81".repeat(64);
    assert_eq!(
        door.admitted(&Asking::by_query(&format!("uid={fits}"))),
        Ok(format!("rooms/{}", "\u{e9}".repeat(64)))
    );
    let over = format!("uid={fits}x");
    assert_eq!(door.admitted(&Asking::by_query(&over)), Err(UID_INVALID));
    assert_eq!(door.admitted(&Asking::by_query("uid=a%C2%85")), Err(UID_INVALID), "C1 controls too");
    assert_eq!(door.admitted(&Asking::by_query("uid=~a")), Err(UID_INVALID));
    assert_eq!(normal_uid("~a", 128).as_deref(), Ok("~a"), "those who speak of anonymous users name them so");
}

#[test]
fn elsewhere_the_uid_parameter_is_not() {
    let believed = with_query();
    let policy =
        UidPolicy { sources: vec![UidSource::Query("uid".into())], required: true, believes_clients: false };
    let foreign = Door { identity: Identity::new([("rooms".into(), policy)], 128), ..believed };
    assert_eq!(foreign.admitted(&Asking::by_query("uid=alice")), Err(UID_REQUIRED));
    let signed = with_jwt(JwtSettings::default());
    assert_eq!(signed.admitted(&Asking::by_query("uid=alice")), Err(UID_REQUIRED));
    let none = Door { identity: Identity::new([], 128), ..signed };
    assert_eq!(none.admitted(&Asking::by_query("uid=alice")), Err(UID_REQUIRED));
}

#[test]
fn the_first_source_that_finds_something_decides() {
    let policy = Arc::new(JwtPolicy::new(tokens::secret(), JwtSettings::default()));
    let door = door(true, || {
        vec![
            UidSource::Jwt(policy.clone(), vec![TokenPlace::Query("token".into())]),
            UidSource::Header("X-User".into()),
            UidSource::Cookie("user".into()),
            UidSource::Query("user".into()),
        ]
    });
    let token = signed(&good_claims());
    for (query, headers, expected) in [
        (format!("token={token}&user=d"), "X-User: b\r\nCookie: user=c\r\n", Ok("rooms/alice")),
        ("user=d".into(), "X-User: b\r\nCookie: user=c\r\n", Ok("rooms/b")),
        ("user=d".into(), "Cookie: a=b; user=c\r\n", Ok("rooms/c")),
        ("user=d".into(), "Cookie: xuser=c; a=user=b\r\n", Ok("rooms/d")),
        (String::new(), "", Err(UID_REQUIRED)),
        // What is found and bad is not passed over.
        ("token=x&user=d".into(), "", Err(UID_INVALID)),
        ("user=d".into(), "X-User: b\r\nX-User: c\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=b; user=b\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=b\r\nCookie: user=c\r\n", Err(UID_INVALID)),
        ("user=d&user=e".into(), "", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=\r\n", Err(UID_REQUIRED)),
        ("user=d".into(), "Cookie: user=%00\r\n", Err(UID_INVALID)),
        ("user=d".into(), "Cookie: user=%ff\r\n", Err(UID_INVALID)),
        (String::new(), "Cookie: user=\"a%20b+c\"\r\n", Ok("rooms/a b+c")),
    ] {
        let asking = Asking { headers: headers.into(), is_from_proxy: true, ..Asking::by_query(&query) };
        let got = door.admitted(&asking);
        assert_eq!(got.as_deref().map_err(|code| *code), expected, "{query} {headers:?}");
    }
    let forged = Asking::by_header("X-User: b");
    assert_eq!(door.admitted(&forged), Err(UID_REQUIRED), "from nobody that is trusted");
}

#[test]
fn a_proxied_request_without_a_uid_is_refused_by_a_status_of_its_own_or_goes_on() {
    let sources = || vec![UidSource::Query("uid".into())];
    let needs = door(true, sources);
    assert_eq!(needs.identified(&Asking::by_query("uid=a")), Ok(Some("a".into())));
    assert_eq!(needs.identified(&Asking::by_query("a=b")), Err((430, UID_REQUIRED.into())));
    assert_eq!(needs.identified(&Asking::by_query("uid=%00")), Err((430, UID_INVALID.into())));
    let does_without = door(false, sources);
    assert_eq!(does_without.identified(&Asking::by_query("a=b")), Ok(None));
    assert_eq!(does_without.identified(&Asking::by_query("uid=a")), Ok(Some("a".into())));
    assert_eq!(does_without.identified(&Asking::by_query("uid=%00")), Err((430, UID_INVALID.into())));
    // The machines of this node know nobody without a uid.
    assert_eq!(does_without.admitted(&Asking::by_query("a=b")), Err(UID_REQUIRED));
    assert_eq!(does_without.admitted(&Asking::by_query("product=site")), Err(UID_INVALID));
}

#[test]
fn an_anonymous_user_is_the_same_again_by_its_cookie_and_never_by_its_uid() {
    let door = door(true, || vec![UidSource::Anonymous(Some("mesh_uid".into()))]);
    let came = |headers: &str| {
        let asking = Asking { headers: headers.into(), ..Asking::by_query("uid=mallory") };
        let Admitted { client, set_cookie } = testing::admitted(&door.products, &door.identity, &asking);
        let Uid::Known(uid) = client.admission.unwrap().uid else { panic!("asked again") };
        (uid.to_string(), set_cookie)
    };
    let (uid, set_cookie) = came("");
    let set_cookie = set_cookie.expect("a cookie");
    let (pair, attributes) = set_cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax");
    assert!(uid.starts_with('~') && !uid.contains(pair.split_once('=').unwrap().1), "{uid} {pair}");
    let secure = Asking { is_secure: true, ..Asking::by_query("") };
    let secure = testing::admitted(&door.products, &door.identity, &secure).set_cookie;
    assert!(secure.is_some_and(|cookie| cookie.ends_with("; SameSite=Lax; Secure")));
    assert_eq!(came(&format!("Cookie: a=b; {pair}\r\n")), (uid.clone(), None));
    // Everybody may see the uid: it opens nothing. Nor does what we have not made.
    for forged in [&uid, &uid[1..], "x", ""] {
        let (other, set_cookie) = came(&format!("Cookie: mesh_uid={forged}\r\n"));
        assert!(other != uid && other.starts_with('~'), "{forged}");
        assert_eq!(set_cookie.is_none(), forged == &uid[1..], "{forged}");
    }
}

#[test]
fn without_a_cookie_each_connection_is_a_user_of_its_own() {
    let door = door(true, || vec![UidSource::Anonymous(None)]);
    let came = || testing::admitted(&door.products, &door.identity, &Asking::by_query(""));
    let (first, second) = (came(), came());
    assert!(first.set_cookie.is_none());
    assert_ne!(first.client.admission.unwrap().uid, second.client.admission.unwrap().uid);
}

#[test]
fn offsets_go_to_browsers_and_to_whom_asks() {
    use RecoveryRule::{Browser, Off, On};
    let chrome = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/150.0");
    let python = ("user-agent", "python-requests/2.34.2");
    // What Python's WebSocket client sends in place of a user agent.
    let origin = ("origin", "http://127.0.0.1:4080");
    for (rule, query, header, expected) in [
        (Browser, "", Some(chrome), true),
        (Browser, "", Some(python), false),
        (Browser, "", Some(origin), false),
        (Browser, "", None, false),
        (Browser, "recovery=1", Some(python), true),
        (Browser, "recovery=0", Some(chrome), false),
        (On, "", None, true),
        (On, "recovery=0", Some(chrome), false),
        (Off, "recovery=1", Some(chrome), false),
    ] {
        let header = header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
        let text = format!("GET /?{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let plain = carries_offsets(rule, ClientProtocol::Plain, &head);
        assert!(!plain, "the plain protocol has places of its own");
        let got = carries_offsets(rule, ClientProtocol::SocketIo, &head);
        assert_eq!(got, expected, "{rule:?} {query:?} {header:?}");
    }
}

#[test]
fn what_a_socket_io_client_says_when_it_connects_counts_in_its_turn() {
    let policy = Arc::new(JwtPolicy::new(tokens::secret(), JwtSettings::default()));
    let places = || vec![TokenPlace::Bearer, TokenPlace::Auth("token".into())];
    let door = door(true, || {
        vec![
            UidSource::Jwt(policy.clone(), places()),
            UidSource::Auth("user".into()),
            UidSource::Anonymous(None),
        ]
    });
    let token = signed(&good_claims());
    let came = |asking: &Asking, protocol| {
        testing::admitted_as(&door.products, &door.identity, asking, protocol).client.admission.unwrap().uid
    };
    // A token of the handshake has been asked for first.
    let bearer = Asking::by_header(&format!("Authorization: Bearer {token}"));
    assert_eq!(came(&bearer, ClientProtocol::SocketIo), Uid::from("alice"));
    let Uid::ByAuth(Ok(otherwise)) = came(&Asking::by_query(""), ClientProtocol::SocketIo) else {
        panic!("not asked")
    };
    assert!(otherwise.starts_with('~'), "{otherwise}");
    assert!(matches!(came(&Asking::by_query(""), ClientProtocol::Plain), Uid::Known(_)));
    let said = |auth: &str| match door.identity.of_auth("rooms", auth.as_bytes()) {
        Ok(uid) => Ok(uid.map(|uid| uid.to_string())),
        Err(refusal) => Err(refusal.code.into_owned()),
    };
    let known = |uid: &str| Ok(Some(uid.to_owned()));
    assert_eq!(said(&json!({"token": token, "user": "bob"}).to_string()), known("alice"));
    assert_eq!(said(&json!({"user": "bob"}).to_string()), known("bob"));
    assert_eq!(said(&json!({"user": 7, "token": ""}).to_string()), known("7"));
    assert_eq!(said(&json!({"user": "cafe\u{301}"}).to_string()), known("caf\u{e9}"));
    for nothing in ["", "{}", "{\"token\":null}", "{\"uid\":\"bob\"}"] {
        assert_eq!(said(nothing), Ok(None), "{nothing}");
    }
    for bad in [
        json!({"token": "x", "user": "bob"}),
        json!({"token": {"a": 1}}),
        json!({"user": ["bob"]}),
        json!({"user": "~bob"}),
        json!({"user": "b\u{0}b"}),
        json!({"user": "x".repeat(129)}),
    ] {
        assert_eq!(said(&bad.to_string()), Err(UID_INVALID.to_owned()), "{bad}");
    }
    assert_eq!(said(&json!({"user": ""}).to_string()), Err(UID_REQUIRED.to_owned()));
    assert_eq!(door.identity.of_auth("nope", b"{\"user\":\"bob\"}"), Ok(None));
}
