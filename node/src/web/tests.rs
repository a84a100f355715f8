use std::time::Duration;

use http::HeaderMap;

use super::*;

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn peer(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 1).into()
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
        .collect()
}

fn status(guard: &Guard, peer: SocketAddr, lines: &[(&'static str, &str)]) -> u16 {
    guard.check(peer, &headers(lines)).map_or_else(|failure| failure.status.as_u16(), |()| 200)
}

fn keyed() -> Guard {
    Guard::new(Access::Keys(BearerKeys::new([KEY, "another-key-that-is-good-meanwhile"]).unwrap()))
}

#[test]
fn without_a_key_only_this_host_and_no_page_is_let_in() {
    let guard = Guard::new(Access::at(([127, 0, 0, 1], 1).into(), None).unwrap());
    let me = ([127, 0, 0, 1], 1).into();
    for host in ["127.0.0.1:4090", "localhost:4090", "LOCALHOST", "[::1]:4090", "[::1]", "::1", "10.0.0.1"] {
        assert_eq!(status(&guard, me, &[("host", host)]), 200, "{host}");
    }
    for lines in [
        &[][..],
        &[("host", "evil.example:4090")],
        &[("host", "127.0.0.1.evil.example")],
        &[("host", "localhost.evil.example")],
        &[("host", "127.0.0.1:4090"), ("origin", "https://evil.example")],
        &[("host", "127.0.0.1:4090"), ("origin", "null")],
        &[("host", "127.0.0.1:4090"), ("origin", "http://127.0.0.1:4080")],
    ] {
        assert_eq!(status(&guard, me, lines), 403, "{lines:?}");
    }
    assert_eq!(status(&guard, me, &[("host", "127.0.0.1:4090"), ("origin", "http://127.0.0.1:4090")]), 200);
    assert!(Access::at(([0, 0, 0, 0], 1).into(), None).is_err());
}

#[test]
fn a_key_opens_and_nothing_else_does() {
    let guard = keyed();
    let good = format!("Bearer {KEY}");
    let longer = format!("Bearer {KEY}x");
    assert_eq!(status(&guard, peer(1), &[("authorization", &good)]), 200);
    assert_eq!(
        status(&guard, peer(1), &[("authorization", "bearer another-key-that-is-good-meanwhile")]),
        200
    );
    for value in ["Bearer", "Bearer ", "Basic YTpi", &longer, &longer[..20]] {
        assert_eq!(status(&guard, peer(2), &[("authorization", value)]), 401, "{value}");
    }
    assert!(!format!("{guard:?}").contains(KEY));
    assert_eq!(BearerKeys::new(["short"]).unwrap_err(), WeakKey { len: 5 });
}

#[tokio::test(start_paused = true)]
async fn guessing_is_slowed_per_address() {
    let guard = keyed();
    let good = format!("Bearer {KEY}");
    for _ in 0..5 {
        assert_eq!(status(&guard, peer(1), &[("authorization", "Bearer wrong")]), 401);
    }
    assert_eq!(status(&guard, peer(1), &[("authorization", &good)]), 429);
    assert_eq!(status(&guard, peer(1), &[]), 401);
    assert_eq!(status(&guard, peer(2), &[("authorization", &good)]), 200);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(status(&guard, peer(1), &[("authorization", &good)]), 200);
}

#[tokio::test(start_paused = true)]
async fn the_table_of_failing_addresses_is_bounded() {
    let guard = keyed();
    for n in 0..5_000_u32 {
        let peer = (std::net::Ipv4Addr::from(n), 1).into();
        assert_eq!(status(&guard, peer, &[("authorization", "Bearer wrong")]), 401);
    }
    assert!(format!("{guard:?}").matches("Failures {").count() <= 4_096);
}

struct Echo;

impl Handler for Echo {
    type Answer = Reply;

    async fn handle(self: Arc<Self>, _: SocketAddr, request: http::Request<Incoming>) -> Reply {
        assert_ne!(request.uri().path(), "/panic", "as asked");
        match read_body(request.into_body(), 16).await {
            Ok(body) => Reply::text(http::StatusCode::OK, "text/plain", body),
            Err(failure) => failure.into(),
        }
    }
}

#[tokio::test]
async fn a_body_over_the_bound_is_413_whether_announced_or_not() {
    let running = testing::run(Echo).await;
    assert_eq!(running.ask("POST", "/", "", "0123456789abcdef").await.body, "0123456789abcdef");
    assert_eq!(running.ask("POST", "/", "", "0123456789abcdefg").await.outcome(), (413, "too_large".into()));
    let chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
        20\r\n0123456789abcdef0123456789abcdef\r\n0\r\n\r\n";
    assert_eq!(running.raw(chunked).await.outcome(), (413, "too_large".into()));
}

#[tokio::test]
async fn garbage_is_400_and_a_failing_handler_closes_only_its_connection() {
    let running = testing::run(Echo).await;
    assert_eq!(running.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n").await.status, 400);
    // hyper knows this preface and closes at once.
    assert_eq!(running.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.status, 0);
    assert_eq!(running.ask("GET", "/panic", "", "").await.status, 0);
    assert_eq!(running.ask("GET", "/", "", "").await.status, 200);
    assert_eq!(running.tasks().stop(Duration::from_secs(5)).await, 0);
}

#[test]
fn paths_are_decoded_by_segment() {
    assert_eq!(path_segments("/a/b%2Fc/d+e").unwrap(), ["a", "b/c", "d+e"]);
    assert_eq!(path_segments("/%ff"), None);
    assert_eq!(query_pairs(Some("a=1&b=x%20y+z&c")).unwrap().len(), 3);
    assert!(query_pairs(Some("a=%ff")).is_err());
}
