//! Which products' entities are held in one copy only.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::shard::ProductRules;

/// Products that have chosen not to be backed up.
#[derive(Clone, Debug, Default)]
pub(crate) struct SingleCopy(BTreeSet<Arc<str>>);

impl SingleCopy {
    /// One more product; of one that is known nothing changes.
    pub(crate) fn learn(&mut self, rules: &ProductRules) {
        if !rules.durable {
            self.0.insert(rules.name.clone());
        }
    }

    pub(crate) fn contains(&self, product: &str) -> bool {
        self.0.contains(product)
    }
}

impl<'a> FromIterator<&'a Arc<ProductRules>> for SingleCopy {
    fn from_iter<I: IntoIterator<Item = &'a Arc<ProductRules>>>(products: I) -> Self {
        let mut all = Self::default();
        products.into_iter().for_each(|rules| all.learn(rules));
        all
    }
}
