//! Whose word about a client's address is taken.
//!
//! Belongs here: the networks of trusted proxies, and the client's address as they tell it.
//! Stays out: what is counted per address (`admission`).
//! Invariants: what an address that is not trusted says of itself or others changes nothing.
//! Source: `X-Forwarded-For` as haproxy, nginx and the cloud balancers write it: each appends the address it
//! was connected from, so that only the part written by trusted proxies, from the right, can be believed.

use std::net::{IpAddr, SocketAddr};

use super::head::RequestHead;

/// Hops that a request may have passed.
pub const HOPS_MAX: usize = 10;

/// Headers by which proxies speak of whom they stand for, beside `X-Forwarded-…` and those of the settings.
const FORWARDED: [&str; 5] = ["forwarded", "x-real-ip", "x-mesh-uid", "x-product", "x-uid"];

/// Networks of proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

/// Addresses that begin with the same bits; IPv4 as IPv4-mapped IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    bits: u128,
    prefix: u8,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client, as far as it can be known.
    pub ip: IpAddr,
    /// Somebody who is not trusted has said more, which is not believed.
    pub ignored: bool,
}

/// A request that has passed more than [`HOPS_MAX`] proxies, or says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {HOPS_MAX} hops in X-Forwarded-For")]
pub struct TooManyHops;

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = address.parse().ok()?;
        let (own, before) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix = prefix.unwrap_or(own);
        let network = Self { bits: bits(ip), prefix: before + prefix };
        // Bits behind the prefix are a slip of somebody's hand.
        (prefix <= own && network.bits & !network.mask() == 0).then_some(network)
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl TrustedProxies {
    /// Reads addresses (`192.0.2.1`) and networks (`192.0.2.0/24`, `2001:db8::/32`).
    ///
    /// # Errors
    /// The first text that is neither.
    pub fn from_list(list: &[String]) -> Result<Self, String> {
        let network = |text: &String| Network::parse(text).ok_or_else(|| text.clone());
        list.iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Whether what this address says of others is believed.
    #[must_use]
    pub fn contain(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| bits(ip) & network.mask() == network.bits)
    }

    /// The address that a request comes from: the rightmost hop that is not trusted itself. `more` names
    /// further headers, in lower case, that only proxies may send.
    ///
    /// # Errors
    /// [`TooManyHops`], from a trusted proxy only.
    pub fn origin(
        &self,
        peer: IpAddr,
        head: &RequestHead<'_>,
        more: &[String],
    ) -> Result<Origin, TooManyHops> {
        if !self.contain(peer) {
            let speaks = |(name, _): (&str, _)| {
                let name = name.to_ascii_lowercase();
                name.starts_with("x-forwarded-") || FORWARDED.contains(&name.as_str()) || more.contains(&name)
            };
            return Ok(Origin { ip: peer, ignored: head.headers().any(speaks) });
        }
        let hops: Vec<&[u8]> =
            head.values("x-forwarded-for").flat_map(|value| value.split(|&byte| byte == b',')).collect();
        if hops.len() > HOPS_MAX {
            return Err(TooManyHops);
        }
        let mut ip = peer;
        for hop in hops.into_iter().rev() {
            // What is no address was not written by a proxy that knows what it does: it ends the chain.
            let Some(next) = std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())) else { break };
            ip = next;
            if !self.contain(ip) {
                break;
            }
        }
        Ok(Origin { ip, ignored: false })
    }
}

/// With a port or without.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let ip = bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()));
    ip.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(list: &[&str]) -> TrustedProxies {
        let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
        TrustedProxies::from_list(&list).unwrap()
    }

    fn origin(peer: &str, headers: &str) -> Result<(String, bool), TooManyHops> {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let proxies = trusted(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]);
        proxies
            .origin(peer.parse().unwrap(), &head, &["x-user".into()])
            .map(|origin| (origin.ip.to_string(), origin.ignored))
    }

    #[test]
    fn the_rightmost_hop_that_is_not_trusted_is_the_client() {
        let many = "1.1.1.1, ".repeat(10);
        for (peer, headers, expected) in [
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
            ("10.0.0.1", "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.2.0.1, 192.0.2.7\r\n", "203.0.113.9"),
            ("10.0.0.1", "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
            ("10.0.0.1", "X-Forwarded-For: 203.0.113.9:4711\r\n", "203.0.113.9"),
            ("10.0.0.1", "X-Forwarded-For: [2a00::1]:4711\r\n", "2a00::1"),
            ("10.0.0.1", "X-Forwarded-For: ::ffff:203.0.113.9\r\n", "203.0.113.9"),
            ("2001:db8::5", "X-Forwarded-For: 2a00::1\r\n", "2a00::1"),
            ("::ffff:10.0.0.1", "X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
            ("10.0.0.1", "X-Forwarded-For: 10.3.0.1, 10.4.0.1\r\n", "10.3.0.1"),
            ("10.0.0.1", "X-Forwarded-For: 6.6.6.6, junk, 10.4.0.1\r\n", "10.4.0.1"),
            ("10.0.0.1", "X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n", "10.0.0.1"),
        ] {
            assert_eq!(origin(peer, headers), Ok((expected.to_owned(), false)), "{peer} {headers:?}");
        }
        let eleven = format!("X-Forwarded-For: {many}10.0.0.2\r\n");
        assert_eq!(origin("10.0.0.1", &eleven), Err(TooManyHops));
        assert_eq!(origin("6.6.6.6", &eleven), Ok(("6.6.6.6".into(), true)), "nobody believes it anyway");
    }

    #[test]
    fn what_others_say_is_ignored_and_noted() {
        for said in [
            "X-Forwarded-For: 1.1.1.1",
            "x-forwarded-proto: https",
            "Forwarded: for=1.1.1.1",
            "X-Real-IP: 1",
            "X-Mesh-Uid: a",
            "X-User: a",
        ] {
            assert_eq!(
                origin("203.0.113.9", &format!("{said}\r\n")),
                Ok(("203.0.113.9".into(), true)),
                "{said}"
            );
        }
        assert_eq!(origin("192.0.2.8", "X-Other: 1\r\n"), Ok(("192.0.2.8".into(), false)));
    }

    #[test]
    fn what_is_no_network_is_named() {
        for bad in
            ["", "nonsense", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "localhost"]
        {
            assert_eq!(TrustedProxies::from_list(&["10.0.0.0/8".into(), bad.into()]), Err(bad.into()));
        }
        let all = trusted(&["0.0.0.0/0"]);
        assert!(all.contain([1, 2, 3, 4].into()) && !all.contain("2a00::1".parse().unwrap()));
        assert!(trusted(&["::/0"]).contain([1, 2, 3, 4].into()));
    }
}
