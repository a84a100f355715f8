//! What is bound: a user, an Engine.IO session or an upstream's mark, of one product.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::Placement;

/// What a binding is of. A wire type: append, never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BindingClass {
    /// A user, by uid.
    Uid,
    /// A session of an Engine.IO server behind the mesh, by the sid that server gave it: a secret.
    Sid,
    /// An upstream, by name: bound to a word about it, such as the end of its drain.
    Upstream,
}

impl BindingClass {
    /// Its word, for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Sid => "sid",
            Self::Upstream => "upstream",
        }
    }
}

/// The name of a binding and where it lives. Cheap to clone (one pointer), ordered by placement first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindingKey(Arc<KeyParts>);

/// Field order is sort order: placement first makes most comparisons one integer's.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct KeyParts {
    placement: Placement,
    class: BindingClass,
    product: Arc<str>,
    text: Box<str>,
}

impl BindingKey {
    /// The binding of this user, session or upstream in `product`. A user's lives where the user's sessions
    /// would; the others at `H(len‖product ‖ len‖class ‖ len‖text)`.
    #[must_use]
    pub fn new(product: &Arc<str>, class: BindingClass, text: &str) -> Self {
        let placement = match class {
            BindingClass::Uid => Placement::of_user(product, text),
            BindingClass::Sid | BindingClass::Upstream => Placement::of_parts(&[product, class.word(), text]),
        };
        Self(Arc::new(KeyParts { placement, class, product: product.clone(), text: text.into() }))
    }

    /// Where it lives on the ring.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.0.placement
    }

    /// What it is of.
    #[must_use]
    pub fn class(&self) -> BindingClass {
        self.0.class
    }

    /// The product it belongs to.
    #[must_use]
    pub fn product(&self) -> &Arc<str> {
        &self.0.product
    }

    /// The uid, the sid or the upstream's name.
    #[must_use]
    pub fn expose_text(&self) -> &str {
        &self.0.text
    }
}

impl std::hash::Hash for BindingKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.placement.0);
    }
}

impl fmt::Debug for BindingKey {
    /// Without the text of a sid, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeyParts { placement, class, product, text } = &*self.0;
        match class {
            BindingClass::Sid => write!(f, "{product} sid {placement:?}"),
            _ => write!(f, "{product} {} {text}", class.word()),
        }
    }
}

impl Serialize for BindingKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.0.product, self.0.class, &*self.0.text).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BindingKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Borrowed from the message: each name is copied once, into its place.
        let (product, class, text) = <(&str, BindingClass, &str)>::deserialize(deserializer)?;
        Ok(Self::new(&product.into(), class, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_binding_lives_with_its_sessions_and_no_two_names_are_one() {
        let product: Arc<str> = "shop".into();
        let key = |class, text| BindingKey::new(&product, class, text);
        let uid = key(BindingClass::Uid, "alice");
        assert_eq!(uid.placement(), Placement::of_user("shop", "alice"));
        let others = [key(BindingClass::Sid, "alice"), key(BindingClass::Upstream, "alice")];
        assert!(others.iter().all(|other| *other != uid && other.placement() != uid.placement()));
        assert_eq!(others[0].placement().0, 0xd34f_a9bd_0f9d_2fa8, "pinned: every node places it alike");
        for key in [uid, others[0].clone(), others[1].clone()] {
            let bytes = crate::wire::encode(&key);
            assert_eq!(crate::wire::decode::<BindingKey>(&bytes), Ok(key));
        }
    }

    #[test]
    fn a_sid_does_not_print() {
        let key = BindingKey::new(&"shop".into(), BindingClass::Sid, "secret");
        assert!(!format!("{key:?}").contains("secret"));
    }
}
