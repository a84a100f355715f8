//! From settings and secrets to products and the one who decides on their clients.
//!
//! Belongs here: what each setting of a product means to [`Identity`].
//! Stays out: how a uid is found and checked (`identity`).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::shard::{Namespaces, ProductRules};

use crate::app::App;
use crate::clock::Clock;
use crate::config::product::{ProductConfig, UidSource as Wanted};
use crate::config::secrets::Secrets;
use crate::config::{Config, DEFAULT_PRODUCT};
use crate::identity::{
    Hook, Identity, JwtPolicy, JwtSettings, Product, ProductKind, Products, UidPolicy, UidSource,
};
use crate::tasks::Tasks;

/// The products of the settings.
pub(super) fn products(config: &Config, apps: &BTreeMap<String, App>) -> Products {
    let with_code = |rules: ProductRules| match apps.get(&*rules.name) {
        Some(app) => ProductRules { is_app: true, namespaces: Namespaces::new(app.names()), ..rules },
        None => rules,
    };
    let product = |(name, product): (&String, &ProductConfig)| Product {
        name: name.as_str().into(),
        kind: match product.is_proxy() {
            true => ProductKind::Proxy,
            false => ProductKind::Rooms(Arc::new(with_code(product.rules(name)))),
        },
        hosts: product.hosts.clone(),
        paths: product.paths.clone(),
    };
    let names = || config.products.0.keys();
    let chosen = || names().find(|name| **name == config.client.default_product);
    // A program that embeds a node for one product of its own means that one.
    let only = || apps.keys().next().filter(|_| apps.len() == 1);
    let rooms = || names().find(|name| *name == DEFAULT_PRODUCT);
    let default = chosen().or_else(only).or_else(rooms).or_else(|| names().next());
    let default = default.and_then(|name| config.products.0.get_key_value(name)).map(product);
    let default = default.unwrap_or_else(|| Product::rooms(ProductConfig::default().rules(DEFAULT_PRODUCT)));
    let unknown_is_default = config.client.unknown_product == "default";
    Products::new(default, config.products.0.iter().map(product), unknown_is_default)
}

/// Who decides on the clients of each product.
pub(super) fn identity(config: &Config, secrets: &Secrets, clock: Clock, tasks: &Tasks) -> Identity {
    let mut policies = Vec::new();
    for (name, product) in &config.products.0 {
        let jwt = secrets.jwt_keys.get(name);
        let jwt = jwt.map(|keys| Arc::new(JwtPolicy::new(keys.clone(), jwt_settings(product))));
        let cookie = Some(&product.anonymous_cookie).filter(|name| !name.is_empty());
        let sources = product.uid_sources().into_iter().filter_map(|source| {
            Some(match source {
                // Without its key nobody can be told apart: its clients are refused.
                Wanted::Jwt => UidSource::Jwt(jwt.clone()?, product.token_places()),
                Wanted::Query(name) => UidSource::Query(name),
                Wanted::Cookie(name) => UidSource::Cookie(name),
                Wanted::Header(name) => UidSource::Header(name),
                Wanted::Auth(name) => UidSource::Auth(name),
                Wanted::Hook => UidSource::Hook(Arc::new(Hook::new(
                    name.as_str().into(),
                    product.hook()?,
                    clock,
                    tasks.clone(),
                ))),
                Wanted::Anonymous => UidSource::Anonymous(cookie.cloned()),
            })
        });
        let policy = UidPolicy {
            sources: sources.collect(),
            required: product.requires_uid(),
            believes_clients: product.insecure_identity || config.client.open_listener().is_none(),
        };
        policies.push((Arc::from(name.as_str()), policy));
    }
    Identity::new(policies, config.limits.uid_bytes_max)
}

/// Headers by which trusted proxies say who a user is, of all products, in lower case.
pub(super) fn identity_headers(config: &Config) -> Vec<String> {
    let sources = config.products.0.values().flat_map(ProductConfig::uid_sources);
    let names = sources.filter_map(|source| match source {
        Wanted::Header(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

fn jwt_settings(product: &ProductConfig) -> JwtSettings {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty()).into_iter().collect();
    JwtSettings {
        uid_claim: product.jwt_claim.clone(),
        issuers: some(&product.jwt_issuer),
        audiences: some(&product.jwt_audience),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::identity::TokenKeys;
    use crate::identity::testing::{Asking, admitted};

    #[test]
    fn a_token_s_product_does_not_take_uids_by_query_though_another_does() {
        let mut config = Config::default();
        let signed = ProductConfig { jwt_key_file: Some("key".into()), ..ProductConfig::default() };
        config.products.0.insert("chat".into(), signed);
        let mut keys = TokenKeys::default();
        keys.add_secret(&[7; 32]).unwrap();
        let jwt_keys = BTreeMap::from([("chat".to_owned(), keys)]);
        let secrets = Secrets { cluster: None, api_key: None, admin_token: None, jwt_keys };
        let identity = identity(&config, &secrets, Clock::start(), &Tasks::new());
        let products = products(&config, &BTreeMap::new());
        let refused = |query: &str| {
            let admitted = admitted(&products, &identity, &Asking::by_query(query));
            admitted.client.admission.err().map(|refusal| refusal.code)
        };
        assert_eq!(refused("uid=alice"), None);
        assert_eq!(refused("uid=alice&product=rooms"), None);
        assert_eq!(refused("uid=alice&product=chat").as_deref(), Some("uid_required"));
        assert_eq!(refused("uid=alice&product=%63hat").as_deref(), Some("uid_required"));
        assert_eq!(refused("uid=alice&product=nope").as_deref(), Some("product_unknown"));
    }

    #[test]
    fn the_default_product_is_the_one_of_the_settings_then_the_only_one_with_code_then_rooms() {
        let mut config = Config::default();
        for name in ["a", "b"] {
            config.products.0.insert(name.into(), ProductConfig::default());
        }
        let default = |config: &Config, apps: &[&str]| {
            let apps = apps.iter().map(|name| ((*name).to_owned(), App::new())).collect();
            products(config, &apps).default_product().name.to_string()
        };
        assert_eq!(default(&config, &[]), "rooms");
        assert_eq!(default(&config, &["b"]), "b");
        config.client.default_product = "a".into();
        assert_eq!(default(&config, &["b"]), "a");
        config.client.default_product = String::new();
        config.products.0.remove("rooms");
        assert_eq!(default(&config, &[]), "a");
    }
}
