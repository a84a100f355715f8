//! From settings and secrets to products and the one who decides on their clients.
//!
//! Belongs here: what each setting of a product means to [`Identity`].
//! Stays out: how a uid is found and checked (`identity`).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::shard::{Namespaces, ProductRules};

use crate::app::App;
use crate::config::secrets::Secrets;
use crate::config::{self, Config, DEFAULT_PRODUCT, ProductConfig};
use crate::identity::{Identity, JwtPolicy, JwtSettings, Products, UidSource, WeakSecret};

/// The products of the settings.
pub(super) fn products(config: &Config, apps: &BTreeMap<String, App>) -> Products {
    let with_code = |rules: ProductRules| match apps.get(&*rules.name) {
        Some(app) => ProductRules { is_app: true, namespaces: Namespaces::new(app.names()), ..rules },
        None => rules,
    };
    let rules = |name: &String| config.products.0.get(name).map(|product| with_code(product.rules(name)));
    let names = || config.products.0.keys();
    // A program that embeds a node for one product of its own means that one.
    let only = apps.keys().next().filter(|_| apps.len() == 1);
    let default = only.or_else(|| names().find(|name| *name == DEFAULT_PRODUCT)).or_else(|| names().next());
    let default = default.and_then(rules).unwrap_or_else(|| ProductConfig::default().rules(DEFAULT_PRODUCT));
    Products::new(default, names().filter_map(rules), false)
}

/// Who decides on the clients of each product.
///
/// # Errors
/// [`WeakSecret`] for a key that the settings' own check would have refused.
pub(super) fn identity(
    config: &Config,
    secrets: &Secrets,
    products: &Arc<Products>,
) -> Result<Identity, WeakSecret> {
    let mut sources = Vec::new();
    for (name, product) in &config.products.0 {
        let source = match (product.identity(), secrets.jwt_keys.get(name)) {
            (config::Identity::Query, _) => UidSource::Query,
            (config::Identity::Anonymous, _) => UidSource::Anonymous,
            (config::Identity::Jwt, Some(key)) => {
                UidSource::Jwt(Box::new(JwtPolicy::hs256(key.expose(), jwt_settings(product))?))
            }
            // Without its key nobody can be told apart: its clients are refused.
            (config::Identity::Jwt, None) => continue,
        };
        sources.push((Arc::from(name.as_str()), source));
    }
    Ok(Identity::new(products.clone(), sources, config.limits.uid_bytes_max))
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

    use mesh_proto::shard::ClientProtocol;

    use super::*;
    use crate::config::secrets::JwtKey;
    use crate::transport::{Doorkeeper as _, Handshake};

    #[test]
    fn a_token_s_product_does_not_take_uids_by_query_though_another_does() {
        let mut config = Config::default();
        let signed = ProductConfig { jwt_key_file: Some("key".into()), ..ProductConfig::default() };
        config.products.0.insert("chat".into(), signed);
        let jwt_keys = BTreeMap::from([("chat".to_owned(), JwtKey::new([7; 32]))]);
        let secrets = Secrets { cluster: None, api_key: None, admin_token: None, jwt_keys };
        let identity = identity(&config, &secrets, &Arc::new(products(&config, &BTreeMap::new()))).unwrap();
        let refused = |query: &str| {
            let handshake = Handshake {
                remote: ([127, 0, 0, 1], 1).into(),
                loopback_listener: true,
                path: "/ws".into(),
                query: query.into(),
                headers: Vec::new(),
                protocol: ClientProtocol::Plain,
            };
            identity.admit(&handshake).admission.err().map(|refusal| refusal.code)
        };
        assert_eq!(refused("uid=alice"), None);
        assert_eq!(refused("uid=alice&product=rooms"), None);
        assert_eq!(refused("uid=alice&product=chat").as_deref(), Some("uid_required"));
        assert_eq!(refused("uid=alice&product=%63hat").as_deref(), Some("uid_required"));
        assert_eq!(refused("uid=alice&product=nope").as_deref(), Some("product_unknown"));
    }
}
