//! Which settings a running node takes over.
//!
//! Belongs here: the list, and settings made of old ones and new ones by it.
//! Stays out: taking them over (`reload`).

use super::{Config, ProductConfig};

/// Settings that take effect at once, beside those of products.
const LIVE: [&str; 5] = [
    "client.allowed_origins",
    "client.trusted_proxies",
    "client.tls_certificates",
    "client.default_product",
    "client.unknown_product",
];

/// Settings of products that do not: what is owned was begun under them, or all nodes must change at once.
const PRODUCT_RESTART: [&str; 1] = ["durability"];

/// Whether a running node takes over a change of this setting.
#[must_use]
pub fn is_live(key: &str) -> bool {
    match key.strip_prefix("products.").and_then(|rest| rest.rsplit_once('.')) {
        Some((_, field)) => !PRODUCT_RESTART.contains(&field),
        None => LIVE.contains(&key),
    }
}

/// `wanted` where that takes effect at once, else `present`.
#[must_use]
pub fn merged(present: &Config, wanted: &Config) -> Config {
    let mut merged = present.clone();
    merged.client.allowed_origins.clone_from(&wanted.client.allowed_origins);
    merged.client.trusted_proxies.clone_from(&wanted.client.trusted_proxies);
    merged.client.default_product.clone_from(&wanted.client.default_product);
    merged.client.unknown_product.clone_from(&wanted.client.unknown_product);
    // Without a port for them there is nobody to show them to.
    if present.client.tls_listen.is_some() && wanted.client.tls_listen.is_some() {
        merged.client.tls_certificates.clone_from(&wanted.client.tls_certificates);
    }
    merged.products = wanted.products.clone();
    for (name, product) in &mut merged.products.0 {
        if let Some(ProductConfig { durability, .. }) = present.products.0.get(name) {
            product.durability.clone_from(durability);
        }
    }
    let keys = merged.shown().into_iter().map(|shown| shown.key);
    for key in keys.filter(|key| is_live(key)).collect::<Vec<_>>() {
        merged.origins.set(&key, wanted.origins.of(&key));
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Section as _;

    /// Each setting of the table is either taken over, or not, as [`is_live`] says of it.
    #[test]
    fn what_is_said_to_be_taken_over_is() {
        let present = Config::default();
        let mut wanted = Config::default();
        wanted.client.allowed_origins = vec!["https://a.example".into()];
        wanted.client.trusted_proxies = vec!["10.0.0.0/8".into()];
        wanted.client.default_product = "shop".into();
        wanted.client.unknown_product = "default".into();
        wanted.client.head_timeout *= 2;
        wanted.limits.ping_interval *= 2;
        let other =
            ProductConfig { publish: "nobody".into(), durability: "none".into(), ..Default::default() };
        wanted.products.0.extend([("rooms".into(), other.clone()), ("shop".into(), other)]);
        let merged = merged(&present, &wanted);
        for shown in merged.shown() {
            let value = |config: &Config| {
                let all = config.shown();
                all.into_iter().find(|other| other.key == shown.key).map(|other| other.value)
            };
            let expected =
                if is_live(&shown.key) { value(&wanted) } else { value(&present).or(value(&wanted)) };
            assert_eq!(Some(shown.value), expected, "{}", shown.key);
        }
        assert_eq!(
            merged.products.0["shop"].durability, "none",
            "a product that is new begins as it is to be"
        );
        assert!(merged.client.keys().iter().any(|key| key.field == "tls_certificates"));
    }
}
