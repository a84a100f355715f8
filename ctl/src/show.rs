//! Answers as text for people.
//!
//! Belongs here: columns and words. Stays out: facts, JSON (the answers print themselves).

use std::fmt::Write as _;

use meshd::admin::answers::{
    BindingLine, ConfigAnswer, Counts, DrainLine, Event, Explained, Facts, NodeLine, OwnershipLine, Problem,
    ReloadAnswer, ReloadLine, RingAnswer, RoomLine, SessionLine, Status, UpstreamsAnswer,
};

/// Width of the bar of a node that owns the whole ring.
const BAR_WIDTH: f64 = 40.0;

pub(crate) fn status(status: &Status) -> String {
    let mut out = String::new();
    match status.problems.as_slice() {
        [] => out.push_str("problems: none\n"),
        problems => {
            let _ = writeln!(out, "problems: {}", problems.len());
            for problem in problems {
                let _ = writeln!(out, "  {}", problem_line(problem));
            }
            if status.problems_untold > 0 {
                let _ = writeln!(out, "  and {} more: ask the nodes themselves", status.problems_untold);
            }
        }
    }
    let nodes = status.nodes.len();
    let agreed = match status.ring_agreed {
        None if nodes == 1 => "the only node",
        None => "nobody else answered",
        Some(true) if status.nodes.iter().all(|node| node.counts.is_some()) => "agreed by all",
        Some(true) => "agreed by all that answered",
        Some(false) => "NOT AGREED",
    };
    let plural = if nodes == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "\n{nodes} node{plural}, ring {} {agreed} (seen from {}, {}, up {})\n",
        status.ring_digest,
        status.node,
        status.software,
        span(status.uptime_secs)
    );
    let head =
        ["NODE", "STATE", "INCARNATION", "ADDRESS", "SHARE", "CLIENTS", "SESSIONS", "ROOMS", "UP", "RING"];
    let rows = status.nodes.iter().map(node_row);
    out.push_str(&table(&head, rows, &[4, 5, 6, 7]));
    out.push('\n');
    for line in status.nodes.iter().filter_map(|node| node.drain.as_ref()) {
        let _ = write!(out, "drains: {}", drain_step(line));
    }
    for (name, counts) in answered(status).filter(|(_, counts)| counts.copies_pending > 0) {
        let Counts { copies_pending, replication_lag_ops, .. } = counts;
        let _ = writeln!(
            out,
            "re-replication: {name} has {copies_pending} copies to fill, {replication_lag_ops} ops unconfirmed"
        );
    }
    let sum = |count: fn(&Counts) -> u64| answered(status).map(|(_, counts)| count(counts)).sum::<u64>();
    let _ = writeln!(
        out,
        "copies to fill {}, ops unconfirmed {}, history kept {}, parked sessions {}",
        sum(|c| c.copies_pending),
        sum(|c| c.replication_lag_ops),
        size(sum(|c| c.history_bytes)),
        sum(|c| c.parked_sessions),
    );
    out
}

/// The nodes that said something of themselves.
fn answered(status: &Status) -> impl Iterator<Item = (&str, &Counts)> {
    status.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.counts.as_ref()?)))
}

/// One line of a drain's progress.
pub(crate) fn drain_step(line: &DrainLine) -> String {
    let DrainLine { node, phase, clients, to_hand_over, elapsed_ms, .. } = line;
    let left = match phase.as_str() {
        "serving" => "does not drain".to_owned(),
        "gone" => "ended".to_owned(),
        _ => format!("{clients} clients left, {to_hand_over} entities left"),
    };
    let time = if *elapsed_ms == 0 { String::new() } else { format!(", {}", tenths(*elapsed_ms)) };
    format!("{node}  {phase:<9}  {left}{time}\n")
}

/// What each node has made of its settings.
pub(crate) fn reload(told: &ReloadAnswer) -> String {
    let mut out = String::new();
    for ReloadLine { node, changed, restart, problems } in &told.nodes {
        let verdict = match (problems.is_empty(), changed.is_empty()) {
            (false, _) => "nothing taken over",
            (true, true) => "nothing has changed",
            (true, false) => "taken over",
        };
        let _ = writeln!(out, "{node}  {verdict}");
        for (what, keys) in [("changed", changed), ("needs a restart", restart), ("problem", problems)] {
            for key in keys {
                let _ = writeln!(out, "  {what}: {key}");
            }
        }
    }
    out
}

/// One line of `watch`: the time of day in UTC, the kind, what happened.
pub(crate) fn event(event: &Event) -> String {
    let Event { at_ms, kind, text, .. } = event;
    let (secs, millis) = (at_ms / 1_000 % 86_400, at_ms % 1_000);
    let (hours, minutes) = (secs / 3_600, secs / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}  {kind:<9}  {text}\n", secs % 60)
}

/// Seconds with one decimal.
fn tenths(millis: u64) -> String {
    format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
}

/// Bytes in the largest unit that leaves a whole number to show.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn problem_line(problem: &Problem) -> String {
    let Problem { what, since_secs, hurts, advice, said_by } = problem;
    let since = if *since_secs == 0 { "now".to_owned() } else { format!("for {}", span(*since_secs)) };
    let says = match said_by.as_slice() {
        [] => String::new(),
        [one] => format!(", says {one}"),
        several => format!(", say {}", several.join(", ")),
    };
    format!("{what} ({since}{says}); hurts: {hurts}; do: {advice}")
}

fn node_row(node: &NodeLine) -> Vec<String> {
    let mark = if node.is_me { " *" } else { "" };
    let mut row = vec![
        format!("{}{mark}", node.name),
        node.state.clone(),
        node.incarnation.to_string(),
        node.mesh_addr.clone(),
        percent(node.share),
    ];
    match &node.counts {
        Some(counts) => {
            let numbers = [counts.clients, counts.sessions, counts.rooms];
            row.extend(numbers.map(|number| number.to_string()));
            row.push(span(counts.uptime_secs));
            let agrees = if counts.agrees { "agrees" } else { "DIFFERS" };
            row.push(format!("{} {agrees}", counts.ring_digest));
        }
        None => row.extend(["-", "-", "-", "-", "no answer"].map(str::to_owned)),
    }
    row
}

pub(crate) fn ring(ring: &RingAnswer) -> String {
    let head = ["NODE", "SHARE", "WEIGHT", "ZONE", "ARCS", ""];
    let largest = ring.nodes.iter().map(|node| node.share).fold(0.0, f64::max);
    let rows = ring.nodes.iter().map(|node| {
        let bar = if largest > 0.0 { bar(node.share / largest) } else { String::new() };
        let numbers = [node.weight.to_string(), node.zone.to_string(), node.arcs.to_string()];
        [vec![node.name.clone(), percent(node.share)], numbers.to_vec(), vec![bar]].concat()
    });
    let title = format!("ring {} (seen from {})\n\n", ring.ring_digest, ring.node);
    title + &table(&head, rows, &[1, 2, 3, 4])
}

fn bar(part: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the width")]
    let cells = (part.clamp(0.0, 1.0) * BAR_WIDTH).round() as usize;
    "█".repeat(cells)
}

pub(crate) fn explained(explained: &Explained) -> String {
    let Explained { node, key, hash, ring_digest, owner, shard, backup, next, facts } = explained;
    let nobody = "nobody: no node is active";
    let owner_text = match (owner, shard) {
        (Some(owner), Some(shard)) => format!("{owner}, shard {shard}"),
        (Some(owner), None) => owner.clone(),
        (None, _) => nobody.to_owned(),
    };
    let mut rows = vec![
        vec!["key".into(), key.clone()],
        vec!["hash".into(), hash.clone()],
        vec!["owner".into(), owner_text],
        vec!["backup".into(), backup.clone().unwrap_or_else(|| "none: no other node is active".into())],
    ];
    if !next.is_empty() {
        rows.push(vec!["then".into(), next.join(", ")]);
    }
    rows.push(vec!["ring".into(), format!("{ring_digest} (seen from {node})")]);
    let mut out = table(&[], rows.into_iter(), &[]);
    out.push('\n');
    match facts {
        Facts::Nothing => {
            out.push_str("The owner knows nothing of it: no session, no event, no member, no binding.\n")
        }
        Facts::Unknown(why) => {
            let _ = writeln!(out, "The owner did not say: {why}.");
        }
        Facts::User(sessions) => out.push_str(&sessions_table(sessions)),
        Facts::Room(room) => out.push_str(&room_table(room)),
        Facts::Binding(binding) => out.push_str(&binding_table(binding)),
    }
    out
}

fn sessions_table(sessions: &[SessionLine]) -> String {
    let head = ["SESSION", "NAMESPACE", "EDGE", "ROOMS", "INBOUND", "OWN LOG", "TERM", "SINCE", "BACKUP"];
    let rows = sessions.iter().map(|session| {
        let edge = session.edge.clone().unwrap_or_else(|| "none: waiting for its client".into());
        let numbers = [session.rooms.to_string(), session.inbound.to_string(), session.own_seq.to_string()];
        let names = vec![session.sid.clone(), session.namespace.clone(), edge];
        let held = [session.term.clone(), came(&session.ownership), backup(&session.ownership)];
        [names, numbers.to_vec(), held.to_vec()].concat()
    });
    table(&head, rows, &[3, 4, 5])
}

fn room_table(room: &RoomLine) -> String {
    let RoomLine { term, seq, entries, bytes, seconds_kept, subscribers, ownership } = room;
    let log = format!("{entries} entries, {bytes} bytes, the oldest {} old", span(*seconds_kept));
    let rows = [
        vec!["log".into(), log],
        vec!["newest".into(), format!("{seq}")],
        vec!["term".into(), term.clone()],
        vec!["since".into(), came(ownership)],
        vec!["backup".into(), backup(ownership)],
    ];
    let mut out = table(&[], rows.into_iter(), &[]);
    if subscribers.is_empty() {
        out.push_str("\nNo node has members.\n");
    } else {
        let rows = subscribers.iter().map(|s| vec![s.edge.clone(), s.seq.to_string()]);
        out.push('\n');
        out.push_str(&table(&["EDGE", "HAS TAKEN"], rows, &[1]));
    }
    out
}

fn binding_table(binding: &BindingLine) -> String {
    let BindingLine { upstream, term, decision, ends_in_secs, ownership } = binding;
    let ends = match ends_in_secs {
        Some(secs) => format!("in {}, unless it is used", span(*secs)),
        None => "when it is lifted".into(),
    };
    let rows = [
        vec!["bound to".into(), upstream.clone()],
        vec!["decision".into(), format!("{decision}, under term {term}")],
        vec!["ends".into(), ends],
        vec!["since".into(), came(ownership)],
        vec!["backup".into(), backup(ownership)],
    ];
    table(&[], rows.into_iter(), &[])
}

/// The last move of an entity and why: `12 s, taken over from n2`.
fn came(ownership: &OwnershipLine) -> String {
    let OwnershipLine { began, from, since_secs, .. } = ownership;
    let from = from.as_deref().unwrap_or("a node that is gone");
    let why = match began.as_str() {
        "new" => "began here".to_owned(),
        "take-over" => format!("taken over from {from}, which went"),
        "hand-over" => format!("handed over by {from}"),
        other => other.to_owned(),
    };
    format!("{}, {why}", span(*since_secs))
}

fn backup(ownership: &OwnershipLine) -> String {
    match (&ownership.backup, ownership.lag_ops) {
        (None, _) => "none".into(),
        (Some(backup), 0) => format!("{backup}, has all"),
        (Some(backup), lag) => format!("{backup}, {lag} ops behind"),
    }
}

pub(crate) fn upstreams(answer: &UpstreamsAnswer) -> String {
    if answer.upstreams.is_empty() {
        return format!("no product of {} has upstreams\n", answer.node);
    }
    let head = ["PRODUCT", "UPSTREAM", "STATE", "OPEN", "ANSWERED", "FAILED", ""];
    let rows = answer.upstreams.iter().map(|line| {
        let mut words = vec![line.why.clone()];
        words.extend(line.tried_in_secs.map(|secs| format!("tried again in {secs} s")));
        words.extend(line.closed_in_secs.map(|secs| format!("closed in {secs} s")));
        words.retain(|word| !word.is_empty());
        let counts = [u64::from(line.open), line.answered_total, line.failed_total].map(|n| n.to_string());
        let names = [line.product.clone(), line.upstream.clone(), line.state.clone()];
        [names.to_vec(), counts.to_vec(), vec![words.join(", ")]].concat()
    });
    format!("seen from {}\n\n", answer.node) + &table(&head, rows, &[3, 4, 5])
}

pub(crate) fn config(config: &ConfigAnswer) -> String {
    let rows = config.values.iter().map(|value| {
        let shown = if value.value.is_empty() { "\"\"".to_owned() } else { value.value.clone() };
        let restart = if value.restart { "restart" } else { "live" };
        vec![value.key.clone(), shown, value.origin.clone(), restart.to_owned()]
    });
    table(&["SETTING", "VALUE", "SET BY", "CHANGE NEEDS"], rows, &[])
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `7 s`, `3 min 5 s`, `2 h 10 min`, `4 d 1 h`.
fn span(secs: u64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3_600, secs / 86_400);
    match secs {
        0..60 => format!("{secs} s"),
        60..3_600 => format!("{minutes} min {} s", secs % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Columns two spaces apart; those in `numbers` to the right. No spaces at line ends.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>, numbers: &[usize]) -> String {
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !head.is_empty() {
        lines.push(head.iter().map(|&name| name.to_owned()).collect());
    }
    lines.extend(rows);
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let text = cells.collect::<Vec<_>>().join("  ");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
