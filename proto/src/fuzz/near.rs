//! Bytes that are nearly right, for tests: any bytes at all hardly ever come past a decoder's first line.

use proptest::prelude::*;

/// `seeds` put together and damaged: bytes changed, taken out, doubled.
pub fn near(seeds: &[&'static [u8]]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let whole =
        prop::collection::vec(prop::sample::select(seeds.to_vec()), 0..6).prop_map(|seeds| seeds.concat());
    let damage = prop::collection::vec((any::<prop::sample::Index>(), 0_u8..5, any::<u8>()), 0..4);
    (whole, damage).prop_map(|(mut bytes, damage)| {
        for (at, how, byte) in damage {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                2 => drop(bytes.drain(at..(at + 1 + usize::from(byte % 8)).min(bytes.len()).max(at))),
                3 => bytes.extend_from_within(at..),
                _ => {
                    if let Some(changed) = bytes.get_mut(at) {
                        *changed = byte;
                    }
                }
            }
        }
        bytes
    })
}
