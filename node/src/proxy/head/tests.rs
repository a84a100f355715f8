use super::*;

fn facts<'f>() -> Facts<'f> {
    Facts {
        peer: [203, 0, 113, 9].into(),
        trusted: false,
        secure: false,
        uid: Some("alice"),
        uid_query: None,
        identity_headers: &[],
        host: None,
        request_id: "id-1",
        plain_answer: false,
    }
}

fn sent(request_line: &str, fields: &str, facts: &Facts<'_>) -> Result<UpstreamHead, Unusable> {
    let text = format!("{request_line} HTTP/1.1\r\nHost: app.example\r\n{fields}\r\n");
    let head = RequestHead::parse(text.as_bytes()).unwrap();
    let length = crate::transport::body::BodyPieces::new(&head, u64::MAX).unwrap().length();
    let upgrade = head.has_token("connection", "upgrade");
    for_upstream(&head, facts, length, upgrade)
}

/// Every value of `name`, joined by `|`.
fn values(headers: &HeaderMap, name: &str) -> String {
    let texts =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    texts.collect::<Vec<_>>().join("|")
}

#[test]
fn fields_for_one_connection_stay_there() {
    let cases: &[(&str, &str, &str)] = &[
        ("Connection: close\r\n", "connection", ""),
        ("Connection: x-secret, close\r\nX-Secret: 1\r\n", "x-secret", ""),
        ("Connection: close\r\nConnection: , X-Secret ,\r\nX-Secret: 1\r\n", "x-secret", ""),
        ("Keep-Alive: timeout=5\r\n", "keep-alive", ""),
        ("Proxy-Connection: keep-alive\r\n", "proxy-connection", ""),
        ("Proxy-Authorization: Basic x\r\n", "proxy-authorization", ""),
        ("Proxy: http://evil\r\n", "proxy", ""),
        ("Upgrade: h2c\r\nHTTP2-Settings: x\r\n", "upgrade", ""),
        ("Upgrade: h2c\r\nHTTP2-Settings: x\r\n", "http2-settings", ""),
        ("TE: gzip\r\n", "te", ""),
        ("TE: trailers, gzip\r\nConnection: TE\r\n", "te", "trailers"),
        ("TE: trailers\r\n", "connection", "te"),
        // Nobody takes these off by naming them.
        ("Connection: host, close\r\n", "host", "app.example"),
        ("Connection: via\r\nVia: 1.0 fred\r\n", "via", "1.0 fred, 1.1 meshd"),
        ("Connection: x-forwarded-for\r\n", "x-forwarded-for", "203.0.113.9"),
        ("Connection: x-mesh-uid\r\n", "x-mesh-uid", "alice"),
        ("Connection: content-length\r\nContent-Length: 3\r\n", "content-length", "3"),
        ("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "transfer-encoding", "chunked"),
        ("Transfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n", "trailer", "X-Sum"),
        // A body's announcement is written by us, once.
        ("Content-Length: 0003\r\n", "content-length", "3"),
        ("Expect: 100-continue\r\nContent-Length: 3\r\n", "expect", "100-continue"),
        ("Expect: 100-continue\r\n", "expect", ""),
        ("Expect: tea\r\nContent-Length: 3\r\n", "expect", ""),
        // What is end to end stays, in its order.
        ("Cookie: a=b\r\nCookie: c=d\r\n", "cookie", "a=b|c=d"),
        ("Authorization: Bearer x\r\n", "authorization", "Bearer x"),
        ("Accept-Encoding: gzip\r\n", "accept-encoding", "gzip"),
    ];
    for (fields, name, expected) in cases {
        let head = sent("POST /", fields, &facts()).unwrap();
        assert_eq!(values(&head.headers, name), *expected, "{fields:?}");
    }
}

#[test]
fn an_upgrade_takes_its_fields_along() {
    let fields = "Connection: keep-alive, Upgrade, x-a\r\nUpgrade: websocket\r\nX-A: 1\r\n\
                  Sec-WebSocket-Key: k\r\nSec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Extensions: permessage-deflate; x\r\n";
    let head = sent("GET /ws", fields, &facts()).unwrap();
    for (name, expected) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("x-a", ""),
        ("sec-websocket-key", "k"),
        ("sec-websocket-protocol", "a, b"),
        ("sec-websocket-extensions", "permessage-deflate; x"),
    ] {
        assert_eq!(values(&head.headers, name), expected, "{name}");
    }
}

#[test]
fn who_the_client_is_comes_from_us_and_from_trusted_peers_only() {
    let said = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
                X-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                X-Request-Id: theirs\r\nX-User: eve\r\nX-Mesh-Uid: eve\r\n";
    let identity_headers = ["x-user".to_owned()];
    let untrusted = Facts { identity_headers: &identity_headers, ..facts() };
    let trusted = Facts { trusted: true, ..untrusted };
    for (name, from_anybody, from_trusted) in [
        ("x-forwarded-for", "203.0.113.9", "6.6.6.6, 7.7.7.7, 203.0.113.9"),
        ("x-forwarded-proto", "http", "https"),
        ("x-forwarded-host", "app.example", "evil"),
        ("x-real-ip", "", "6.6.6.6"),
        ("forwarded", "", "for=6.6.6.6, for=203.0.113.9"),
        ("x-request-id", "id-1", "theirs"),
        ("x-user", "", "eve"),
        ("x-mesh-uid", "alice", "alice"),
        ("via", "1.1 meshd", "1.1 meshd"),
    ] {
        assert_eq!(values(&sent("GET /", said, &untrusted).unwrap().headers, name), from_anybody, "{name}");
        assert_eq!(values(&sent("GET /", said, &trusted).unwrap().headers, name), from_trusted, "{name}");
    }
    let secure = Facts { secure: true, ..facts() };
    assert_eq!(values(&sent("GET /", "", &secure).unwrap().headers, "x-forwarded-proto"), "https");
    let bad_id = format!("X-Request-Id: {}\r\n", "a".repeat(200));
    assert_eq!(values(&sent("GET /", &bad_id, &trusted).unwrap().headers, "x-request-id"), "id-1");
}

#[test]
fn no_spelling_of_a_reserved_field_gets_through() {
    let identity_headers = ["x-user".to_owned()];
    for trusted in [false, true] {
        let facts = Facts { trusted, uid: None, identity_headers: &identity_headers, ..facts() };
        for name in [
            "X-Mesh-Uid",
            "x_mesh_uid",
            "X-MESH_UID",
            "X.Mesh.Uid",
            "x_forwarded_for",
            "X_Forwarded-Proto",
            "X_Real_IP",
            "X_User",
            "x_request_id",
        ] {
            let head = sent("GET /", &format!("{name}: eve\r\n"), &facts).unwrap();
            let all: Vec<_> = head.headers.values().map(|value| value.as_bytes().to_vec()).collect();
            assert!(!all.contains(&b"eve".to_vec()), "{name}, trusted: {trusted}");
        }
    }
    let other = sent("GET /", "X_Other: 1\r\n", &facts()).unwrap();
    assert_eq!(values(&other.headers, "x_other"), "1", "other names are the client's own");
}

#[test]
fn a_uid_is_told_in_ascii_and_once() {
    let with = |uid: &'static str, line: &str| {
        let facts = Facts { uid: Some(uid), uid_query: Some("uid"), ..facts() };
        let head = sent(line, "", &facts).unwrap();
        (values(&head.headers, UID_HEADER), head.uri.to_string())
    };
    for (uid, line, in_header, target) in [
        ("alice", "GET /a", "alice", "/a?uid=alice"),
        ("alice", "GET /a?", "alice", "/a?uid=alice"),
        ("a b&c=d", "GET /a?x=1", "a%20b&c=d", "/a?x=1&uid=a%20b%26c%3Dd"),
        ("é%", "GET /", "%C3%A9%25", "/?uid=%C3%A9%25"),
        ("alice", "GET /?uid=eve", "alice", "/?uid=alice"),
        ("alice", "GET /?uid=eve&x=1&uid=eve", "alice", "/?x=1&uid=alice"),
        ("alice", "GET /?%75id=eve&u%69%64=eve", "alice", "/?uid=alice"),
        ("alice", "GET /?uid[]=eve&uid%5Bx%5D=eve&uid.x=eve", "alice", "/?uid=alice"),
        ("alice", "GET /?x=1;uid=eve", "alice", "/?x=1&uid=alice"),
        ("alice", "GET /?uid", "alice", "/?uid=alice"),
        ("alice", "GET /?%ffuid=eve&uid2=x", "alice", "/?uid2=x&uid=alice"),
    ] {
        assert_eq!(with(uid, line), (in_header.to_owned(), target.to_owned()), "{uid} {line}");
    }
    let nobody = Facts { uid: None, uid_query: Some("uid"), ..facts() };
    assert_eq!(sent("GET /?uid=eve", "", &nobody).unwrap().uri.to_string(), "/");
    assert_eq!(
        sent("GET /a/../b?uid=eve&%zz#x", "", &facts()).unwrap().uri.to_string(),
        "/a/../b?uid=eve&%zz"
    );
    let other_host = Facts { host: Some("backend:3000"), ..facts() };
    let head = sent("GET /", "", &other_host).unwrap();
    assert_eq!(values(&head.headers, "host"), "backend:3000");
    assert_eq!(values(&head.headers, "x-forwarded-host"), "app.example");
}

#[test]
fn what_leads_in_a_circle_or_is_no_target_is_refused() {
    let via = "Via: 1.1 meshd, 1.1 other\r\n".repeat(PASSES_MAX - 1);
    assert!(sent("GET /", &via, &facts()).is_ok());
    let via = format!("{via}Via: 1.0 fred, 1.1 meshd\r\n");
    assert_eq!(sent("GET /", &via, &facts()).err(), Some(Unusable::Loop));
    assert_eq!(sent("GET /<a>", "", &facts()).err(), Some(Unusable::Target));
}

#[test]
fn an_answer_is_framed_by_what_the_client_can_read() {
    let ok = StatusCode::OK;
    for (to_head, status, length, http11, expected) in [
        (false, ok, Some(3), true, Framing::Exact(3)),
        (false, ok, None, true, Framing::Chunked),
        (false, ok, None, false, Framing::Close),
        (true, ok, Some(3), true, Framing::None),
        (false, StatusCode::NO_CONTENT, None, true, Framing::None),
        (false, StatusCode::NOT_MODIFIED, Some(3), true, Framing::None),
        (false, StatusCode::RESET_CONTENT, Some(0), true, Framing::Exact(0)),
    ] {
        assert_eq!(framing(to_head, status, length, http11), expected, "{status} {length:?}");
    }
}

#[test]
fn an_answer_loses_what_was_for_us() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive, x-hop"),
        ("keep-alive", "timeout=5"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("content-length", "9"),
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
        ("proxy-authenticate", "Basic"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let text = |framing, closes| {
        let bytes = for_client(StatusCode::OK, None, &headers, framing, &[("x-owner", "n1")], closes);
        String::from_utf8(bytes).unwrap()
    };
    let start = "HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nset-cookie: c=d\r\nvia: 1.1 meshd\r\n";
    assert_eq!(
        text(Framing::Chunked, true),
        format!("{start}transfer-encoding: chunked\r\nx-owner: n1\r\nconnection: close\r\n\r\n")
    );
    assert_eq!(text(Framing::Exact(4), false), format!("{start}content-length: 4\r\nx-owner: n1\r\n\r\n"));
    assert_eq!(text(Framing::None, false), format!("{start}content-length: 9\r\nx-owner: n1\r\n\r\n"));
    let custom = for_client(StatusCode::OK, Some(b"Fine"), &HeaderMap::new(), Framing::Close, &[], false);
    assert!(custom.starts_with(b"HTTP/1.1 200 Fine\r\n"));
}
