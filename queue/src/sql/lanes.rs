//! The lanes that a reserve chooses from.

use super::operation::Fault;
use super::session::Session;
use crate::engine::Core;
use crate::fair::Lane;

/// The lanes whose first message is due, up to [`LANES_MAX`](crate::fair::LANES_MAX) of each priority and once more as
/// many. Where there are more, the next call goes on behind them.
pub(super) async fn lanes(session: &mut impl Session, core: &Core, now: i64) -> Result<Vec<Lane>, Fault> {
    let mut window = core.window();
    let mut lanes = Vec::new();
    let mut from = window.begin();
    // Twice at most: whose end came is looked at from the first on.
    while !from.is_empty() {
        let found = session.lanes(&from, now).await?;
        from = window.move_on(&from, &found);
        lanes.extend(found);
    }
    core.look_from(window);
    lanes.sort_unstable_by_key(|lane| (lane.priority, lane.function_id));
    lanes.dedup_by_key(|lane| (lane.priority, lane.function_id));
    Ok(lanes)
}
