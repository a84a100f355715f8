//! Waiting on states instead of sleeping.
//!
//! Invariants: a wait ends as soon as the state is there; one that does not come fails with the last
//! state seen.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// How long a state may take to come. Far above what it takes on a quiet machine: the tests run
/// beside compilers.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a state is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Looks until `probe` gives `Ok`. `Err` says what was seen instead.
///
/// # Panics
/// When it has not come within [`PATIENCE`], with what was last seen.
pub async fn until<T, F>(what: &str, probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    until_within(PATIENCE, what, probe).await
}

/// The same with a patience of one's own.
///
/// # Panics
/// When it has not come by then, with what was last seen.
pub async fn until_within<T, F>(patience: Duration, what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let give_up = Instant::now() + patience;
    let mut look = interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        match probe().await {
            Ok(state) => return state,
            Err(seen) if Instant::now() > give_up => {
                panic!("waited {patience:?} for {what}; last seen: {seen}")
            }
            Err(_) => {}
        }
    }
}

/// `future` within [`PATIENCE`].
///
/// # Panics
/// When it takes longer.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
