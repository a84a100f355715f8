//! The same functions with bytes of proptest: any at all, and what comes near to what is right.

use proptest::prelude::*;

macro_rules! checks {
    ($($check:ident: [$($seed:expr),* $(,)?])*) => {
        proptest! {
            $(
                #[test]
                fn $check(
                    any in prop::collection::vec(any::<u8>(), 0..400),
                    near in mesh_proto::fuzz::near(&[b"", $($seed),*]),
                ) {
                    super::$check(&any);
                    super::$check(&near);
                }
            )*
        }
    };
}

checks! {
    check_http_head: [
        b"\x03GET / HTTP/1.1\r\nHost: x\r\n", b"POST /socket.io/?EIO=4 HTTP/1.0\r\n", b"Content-Length: 3\r\n", b"Host: y\r\n",
        b"Transfer-Encoding: chunked\r\n", b"\r\n", b"\n", b" ", b"#", b"\x16\x03\x01", b"Connection: keep-alive, upgrade\r\n",
    ]
    check_query_eio: [
        b"EIO=4", b"&", b"transport=polling", b"transport=websocket", b"sid=AAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAA", b"sid=", b"%41", b"%",
        b"+", b"\x00", b"\x01", b"j=1", b"__proto__",
    ]
    check_http_body: [b"\x02", b"3\r\nabc\r\n", b"0\r\n\r\n", b"A: b\r\n", b"5;x=y\r\n", b"ffffffffffffffff\r\n", b"\r\n", b"60"]
    check_ws_frame_stream: [
        b"\x05", b"\x81\x83\x01\x02\x03\x04```", b"\x01\x81\0\0\0\0a", b"\x80\x81\0\0\0\0b", b"\x89\x80\x01\x02\x03\x04",
        b"\x88\x82\0\0\0\0\x03\xe8", b"\x82\xfe\x01\x00\0\0\0\0", b"\x82\xff\0\0\0\0\0\0\x01\x00\0\0\0\0", b"\x02\x80\0\0\0\0",
    ]
    check_forwarded_headers: [
        b"203.0.113.7", b", ", b"10.0.0.2", b"[2a00::1]:4711", b"::ffff:10.1.1.1", b"junk", b"\r\nX-Forwarded-For: 1.1.1.1", b"\r\nForwarded: for=1",
    ]
    check_config_toml: [
        b"[node]\n", b"name = \"n1\"\n", b"shards = 2\n", b"[products.chat]\n", b"[limits]\nping_interval = \"1s\"\n", b"[mesh]\nseeds = [\"a:1\"]\n",
        b"seeds = \"\"\"", b"[[", b"]]", b"= ", b"\n", b"{", b"}", b"'", b"products = 3\n", b"a.b.c = 1\n",
    ]
    check_admin_json: [
        b"{\"room\":\"r\",\"event\":\"e\",\"args\":[1]}", b"{\"uid\":\"a\",\"room\":\"r\"}", b"{\"items\":[{\"publish\":{\"room\":\"r\",\"event\":\"e\"}}]}",
        b"{\"sid\":\"x\",\"close\":false}", b"product=chat&uid=a", b"%2", b"{", b"}", b",", b"\"",
    ]
}
