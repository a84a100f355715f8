//! The products of a node, and which of them a request is for.
//!
//! Belongs here: choosing by `?product=`, host name, path and default, in that order.
//! Stays out: who asks (`identity`), what is done for them (`mesh_proto`, `proxy`).
//! Invariants: a request has one product, or a refusal; what chose it does not depend on letter case of
//! hosts, on ports, or on the order of the settings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::shard::ProductRules;
use tokio::sync::watch;

use super::{Denied, PRODUCT_UNKNOWN};
use crate::transport::head::RequestHead;
use crate::transport::{percent_decoded, query_values};

/// One product.
#[derive(Clone, Debug)]
pub struct Product {
    /// Its name.
    pub name: Arc<str>,
    /// What handles its requests.
    pub kind: ProductKind,
    /// Host names that choose it, `*.` before those that are the end of one.
    pub hosts: Vec<String>,
    /// Beginnings of paths that choose it.
    pub paths: Vec<String>,
}

/// What handles a product's requests.
#[derive(Clone, Debug)]
pub enum ProductKind {
    /// This node's machines, by these rules.
    Rooms(Arc<ProductRules>),
    /// Servers behind this port.
    Proxy,
}

impl Product {
    /// A product of kind `rooms` that is chosen by its name only.
    #[must_use]
    pub fn rooms(rules: ProductRules) -> Self {
        let name = rules.name.clone();
        Self { name, kind: ProductKind::Rooms(Arc::new(rules)), hosts: Vec::new(), paths: Vec::new() }
    }

    /// A product of kind `proxy` that is chosen by its name only.
    #[must_use]
    pub fn proxy(name: &str) -> Self {
        Self { name: name.into(), kind: ProductKind::Proxy, hosts: Vec::new(), paths: Vec::new() }
    }

    /// Its rules, if it is of kind `rooms`.
    #[must_use]
    pub fn rules(&self) -> Option<&Arc<ProductRules>> {
        match &self.kind {
            ProductKind::Rooms(rules) => Some(rules),
            ProductKind::Proxy => None,
        }
    }
}

/// The product of a request.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Which.
    pub product: Arc<Product>,
    /// Bytes of the path that chose it: what stands before the product's own paths.
    pub prefix_len: usize,
}

/// The newest products; an operator may change them while a node runs.
pub type ProductsWatch = watch::Receiver<Arc<Products>>;

/// The products of this node.
#[derive(Clone, Debug)]
pub struct Products {
    by_name: BTreeMap<Arc<str>, Arc<Product>>,
    /// In lower case.
    by_host: BTreeMap<String, Arc<Product>>,
    /// Ends of host names in lower case, from their dot; the longest first.
    by_domain: Vec<(String, Arc<Product>)>,
    /// The longest first.
    by_path: Vec<(String, Arc<Product>)>,
    default: Arc<Product>,
    unknown_is_default: bool,
}

impl Products {
    /// `default` is for requests that choose none; with `unknown_is_default` also for those that name one
    /// that is not there, which are refused else.
    #[must_use]
    pub fn new(
        default: Product,
        others: impl IntoIterator<Item = Product>,
        unknown_is_default: bool,
    ) -> Self {
        let default = Arc::new(default);
        let name = default.name.clone();
        let others = others.into_iter().map(Arc::new).filter(|other| other.name != name);
        let mut products = Self {
            by_name: BTreeMap::new(),
            by_host: BTreeMap::new(),
            by_domain: Vec::new(),
            by_path: Vec::new(),
            default: default.clone(),
            unknown_is_default,
        };
        for product in others.chain([default]) {
            for host in &product.hosts {
                let host = host.to_ascii_lowercase();
                match host.strip_prefix('*') {
                    Some(domain) => products.by_domain.push((domain.to_owned(), product.clone())),
                    None => drop(products.by_host.insert(host, product.clone())),
                }
            }
            products.by_path.extend(product.paths.iter().map(|path| (path.clone(), product.clone())));
            products.by_name.insert(product.name.clone(), product);
        }
        products.by_domain.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        products.by_path.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        products
    }

    /// Every product, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Product>> {
        self.by_name.values()
    }

    /// The rules of every product of kind `rooms`.
    pub fn rooms(&self) -> impl Iterator<Item = &Arc<ProductRules>> {
        self.by_name.values().filter_map(|product| product.rules())
    }

    /// The product called `name`, exactly.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Product>> {
        self.by_name.get(name)
    }

    /// What a request that chooses none gets.
    #[must_use]
    pub fn default_product(&self) -> &Arc<Product> {
        &self.default
    }

    /// The product of a request.
    ///
    /// # Errors
    /// 404 `product_unknown` for a name there is not; 400 for a path that may mean another than it says,
    /// where paths choose.
    pub fn chosen(&self, head: &RequestHead<'_>) -> Result<Chosen, Denied> {
        let whole = |product: &Arc<Product>| Chosen { product: product.clone(), prefix_len: 0 };
        if let Some(asked) = query_values(head.query, "product").next().filter(|asked| !asked.is_empty()) {
            let named = percent_decoded(asked).and_then(|name| self.by_name.get(&*name));
            return match named {
                Some(product) => Ok(self.after_prefix(product, head.path)),
                None if self.unknown_is_default => Ok(whole(&self.default)),
                None => Err(Denied {
                    status: 404,
                    code: Cow::Borrowed(PRODUCT_UNKNOWN),
                    message: "no such product here: check ?product= in the URL".into(),
                    retry_after: None,
                }),
            };
        }
        if let Some(product) = head.header_text("host").and_then(|host| self.of_host(host)) {
            return Ok(self.after_prefix(product, head.path));
        }
        if self.by_path.is_empty() {
            return Ok(whole(&self.default));
        }
        if climbs(head.path) {
            return Err(Denied {
                status: 400,
                code: Cow::Borrowed("bad_request"),
                message: "the path has . or .. for a segment".into(),
                retry_after: None,
            });
        }
        let by_path = self.by_path.iter().find(|(path, _)| begins_with(head.path, path));
        Ok(by_path.map_or_else(
            || whole(&self.default),
            |(path, product)| Chosen { product: product.clone(), prefix_len: prefix_len(path) },
        ))
    }

    /// A product that was named otherwise may have its own beginning of paths there all the same.
    fn after_prefix(&self, product: &Arc<Product>, path: &str) -> Chosen {
        let own = self.by_path.iter().find(|(own, of)| of.name == product.name && begins_with(path, own));
        let prefix_len = own.map_or(0, |(own, _)| prefix_len(own));
        Chosen { product: product.clone(), prefix_len }
    }

    fn of_host(&self, host: &str) -> Option<&Arc<Product>> {
        if self.by_host.is_empty() && self.by_domain.is_empty() {
            return None;
        }
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let domain = || {
            let ends = |(domain, _): &&(String, Arc<Product>)| {
                host.len() > domain.len() && host.ends_with(domain.as_str())
            };
            self.by_domain.iter().find(ends).map(|(_, product)| product)
        };
        self.by_host.get(&host).or_else(domain)
    }
}

/// RFC 9110 §7.2; an IPv6 address stands in brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Whether `path` is `prefix` or lies in it.
fn begins_with(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// What is taken off: all but the slash before the rest.
fn prefix_len(prefix: &str) -> usize {
    prefix.trim_end_matches('/').len()
}

/// Whether a path has segments that mean another place (RFC 3986 §5.2.4), escaped or not.
fn climbs(path: &str) -> bool {
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    plain.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(unknown_is_default: bool) -> Products {
        let with = |name: &str, hosts: &[&str], paths: &[&str]| Product {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..Product::proxy(name)
        };
        let others = [
            with("shop", &["shop.example", "*.shop.example"], &["/shop", "/shop/old/"]),
            with("deep", &["a.b.shop.example"], &["/shop/new"]),
            with("chat", &["[::1]"], &["/chat"]),
        ];
        Products::new(Product::rooms(ProductRules::open("rooms")), others, unknown_is_default)
    }

    /// Its name and what is left of the path, or the refusal's status.
    fn chosen(products: &Products, target: &str, host: &str) -> String {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        match products.chosen(&head) {
            Ok(chosen) => format!("{} {}", chosen.product.name, &head.path[chosen.prefix_len..]),
            Err(denied) => format!("{} {}", denied.status, denied.code),
        }
    }

    #[test]
    fn a_request_belongs_to_the_product_it_names_then_to_its_hosts_then_to_its_paths() {
        let products = products(false);
        for (target, host, expected) in [
            ("/", "x", "rooms /"),
            ("/a?product=chat", "shop.example", "chat /a"),
            ("/a?product=ch%61t", "x", "chat /a"),
            ("/a?product=", "shop.example", "shop /a"),
            ("/a?product=nope", "shop.example", "404 product_unknown"),
            ("/a?product=%ff", "x", "404 product_unknown"),
            ("/a?product=Chat", "x", "404 product_unknown"),
            ("/chat", "shop.example", "shop /chat"),
            ("/", "SHOP.example:8080", "shop /"),
            ("/", "shop.example.", "shop /"),
            ("/", "www.shop.example", "shop /"),
            ("/", "b.shop.example", "shop /"),
            ("/", "a.b.shop.example", "deep /"),
            ("/", "evilshop.example", "rooms /"),
            ("/", ".shop.example", "rooms /"),
            ("/", "[::1]:80", "chat /"),
            ("/chat", "x", "chat "),
            ("/chat/", "x", "chat /"),
            ("/chat/ws", "x", "chat /ws"),
            ("/chatter", "x", "rooms /chatter"),
            ("/shop/new/a", "x", "deep /a"),
            ("/shop/newer", "x", "shop /newer"),
            ("/shop/old/a", "x", "shop /a"),
            ("/Chat/ws", "x", "rooms /Chat/ws"),
            // What chose is not what names the product's paths.
            ("/chat/ws?product=chat", "shop.example", "chat /ws"),
            ("/ws?product=chat", "x", "chat /ws"),
        ] {
            assert_eq!(chosen(&products, target, host), expected, "{target} at {host}");
        }
    }

    #[test]
    fn a_path_that_climbs_chooses_nothing() {
        for target in [
            "/chat/../shop",
            "/chat/./a",
            "/..",
            "/chat/%2e%2E/shop",
            "/chat/.%2e/shop",
            "/chat%2f..%2fshop",
            "/chat/..\\shop",
            "/chat/%ff/..%5cshop",
        ] {
            assert_eq!(chosen(&products(false), target, "x"), "400 bad_request", "{target}");
        }
        assert_eq!(chosen(&products(false), "/chat/..a/b..", "x"), "chat /..a/b..");
    }

    #[test]
    fn an_unknown_product_may_be_the_default_one() {
        assert_eq!(chosen(&products(true), "/a?product=nope", "shop.example"), "rooms /a");
    }
}
