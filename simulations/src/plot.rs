//! A run as a picture: nodes are lanes, time goes right.
//!
//! Belongs here: what is noted for it, shapes and colours. Stays out: when anything happens (`cluster`).
//! Units: virtual seconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mesh_proto::time::Instant;

/// What is drawn on the lane of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A life begins.
    Starts,
    /// It is killed.
    Killed,
    /// It has left of its own accord.
    Left,
    /// SIGSTOP.
    Stopped,
    /// SIGCONT.
    GoesOn,
    /// It drains.
    Drains,
    /// It speaks as the owner of something that another owned, or it owned under another term.
    Moves,
    /// An edge is told of a hole.
    Gap,
    /// A client loses its transport to it.
    ClientLost,
}

/// What is noted of a run.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    marks: Vec<(Instant, usize, Mark)>,
    /// Cuts and weather: from, until, what.
    spans: Vec<(Instant, Option<Instant>, String)>,
    /// When and how a promise was broken.
    broken: Option<(Instant, String)>,
    mended: Option<Instant>,
    ended: Instant,
}

impl Timeline {
    /// Something happens to the node at `slot`.
    pub fn mark(&mut self, now: Instant, slot: usize, mark: Mark) {
        self.marks.push((now, slot, mark));
    }

    /// Something lasts until then that concerns many.
    pub fn span(&mut self, from: Instant, until: Instant, what: String) {
        self.spans.push((from, Some(until), what));
    }

    /// All faults are mended: cuts end here at the latest.
    pub fn mended(&mut self, now: Instant) {
        self.mended = Some(now);
        for (_, until, _) in &mut self.spans {
            *until = until.map(|until| until.min(now));
        }
    }

    /// The run is over.
    pub fn ends(&mut self, now: Instant, broken: Option<(Instant, String)>) {
        (self.ended, self.broken) = (now, broken);
    }

    /// Nodes that ever were.
    fn lanes(&self) -> usize {
        self.marks.iter().map(|(_, slot, _)| slot + 1).max().unwrap_or(0)
    }
}

const LEFT: f64 = 64.0;
const TOP: f64 = 84.0;
const LANE: f64 = 46.0;
const SECOND: f64 = 36.0;
const CUT: f64 = 16.0;

const LIFE: &str = "#66ccee";
const DRAINING: &str = "#ccbb44";
const STOPPED: &str = "#bbbbbb";
const KILLED: &str = "#ee6677";
const MOVE: &str = "#4477aa";
const GAP: &str = "#aa3377";
const LOST: &str = "#228833";

fn x(at: Instant) -> f64 {
    LEFT + seconds(at) * SECOND
}

fn seconds(at: Instant) -> f64 {
    at.since(Instant::ZERO).as_secs_f64()
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// The picture, as the text of an SVG file.
#[must_use]
pub fn draw(title: &str, timeline: &Timeline) -> String {
    let lanes = timeline.lanes();
    let bottom = TOP + count(lanes) * LANE;
    let width = x(timeline.ended) + 24.0;
    let height = bottom + 30.0 + count(timeline.spans.len()) * CUT + 40.0;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\">\n\
         <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"600\" fill=\"#1c2733\">{title}</text>\n",
        title = escaped(title),
    );
    legend(&mut out);
    axis(&mut out, timeline, bottom);
    for slot in 0..lanes {
        lane(&mut out, timeline, slot);
    }
    for (index, (from, until, what)) in timeline.spans.iter().enumerate() {
        let y = bottom + 30.0 + count(index) * CUT;
        let (from, until) = (x(*from), x(until.unwrap_or(timeline.ended)));
        let _ = write!(
            out,
            "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"9\" rx=\"2\" fill=\"#e69f00\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"#5b6875\">{}</text>\n",
            (until - from).max(1.5),
            until + 5.0,
            y + 8.5,
            escaped(what),
        );
    }
    if let Some((at, what)) = &timeline.broken {
        let _ = write!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\" stroke=\"{KILLED}\" \
             stroke-width=\"2\"/>\n<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"12\" fill=\"{KILLED}\">{}</text>\n",
            height - 14.0,
            escaped(&what.chars().take(220).collect::<String>()),
            at = x(*at),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String) {
    let words = [
        (LIFE, "up"),
        (DRAINING, "drains"),
        (STOPPED, "stopped"),
        (KILLED, "killed"),
        (MOVE, "begins to own"),
        (GAP, "tells a gap"),
        (LOST, "client lost"),
        ("#e69f00", "cut, weather"),
    ];
    for (index, (colour, word)) in words.into_iter().enumerate() {
        let x = LEFT + count(index) * 112.0;
        let _ = write!(
            out,
            "<rect x=\"{x}\" y=\"40\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"50\" font-size=\"12\" fill=\"#5b6875\">{word}</text>\n",
            x + 16.0,
        );
    }
}

fn axis(out: &mut String, timeline: &Timeline, bottom: f64) {
    let last = timeline.ended.since(Instant::ZERO).as_secs();
    for second in (0..=last).step_by(2) {
        let at = Instant::from_micros(second * 1_000_000);
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\" stroke=\"#e6eaee\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"#8a96a3\" text-anchor=\"middle\">{second} s</text>\n",
            bottom + 14.0,
            x = x(at),
        );
    }
    if let Some(at) = timeline.mended {
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#1c2733\" \
             stroke-dasharray=\"3 3\"/>\n<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"#1c2733\" \
             text-anchor=\"middle\">mended</text>\n",
            TOP - 4.0,
            TOP - 8.0,
            x = x(at),
        );
    }
}

/// Lives as bars, with what happens on them.
fn lane(out: &mut String, timeline: &Timeline, slot: usize) {
    let top = TOP + count(slot) * LANE + 8.0;
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"14\" fill=\"#1c2733\" text-anchor=\"end\">n{slot}</text>",
        LEFT - 10.0,
        top + 14.0,
    );
    let mut bar: Option<(Instant, &str)> = None;
    let end = |out: &mut String, bar: &mut Option<(Instant, &str)>, at: Instant| {
        if let Some((from, colour)) = bar.take() {
            let (from, to) = (x(from), x(at));
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>",
                (to - from).max(0.5),
            );
        }
    };
    let mut ticks = BTreeMap::<(u64, &str), u32>::new();
    for (at, _, mark) in timeline.marks.iter().filter(|(_, at, _)| *at == slot) {
        let begins = match mark {
            Mark::Starts | Mark::GoesOn => Some(LIFE),
            Mark::Drains => Some(DRAINING),
            Mark::Stopped => Some(STOPPED),
            _ => None,
        };
        if begins.is_some() || matches!(mark, Mark::Killed | Mark::Left) {
            end(out, &mut bar, *at);
            bar = begins.map(|colour| (*at, colour));
        }
        // Many at one moment are one taller tick.
        let tenth = at.as_micros() / 50_000;
        match mark {
            Mark::Killed => cross(out, x(*at), top + 9.0),
            Mark::Moves => *ticks.entry((tenth, MOVE)).or_default() += 1,
            Mark::Gap => *ticks.entry((tenth, GAP)).or_default() += 1,
            Mark::ClientLost => *ticks.entry((tenth, LOST)).or_default() += 1,
            _ => {}
        }
    }
    end(out, &mut bar, timeline.ended);
    for ((tenth, colour), many) in ticks {
        let x = x(Instant::from_micros(tenth * 50_000));
        let long = (5.0 + 2.0 * f64::from(many)).min(18.0);
        let (from, to) = match colour {
            MOVE => (top + 18.0, top + 18.0 + long),
            _ => (top, top - long.min(8.0)),
        };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from:.1}\" y2=\"{to:.1}\" stroke=\"{colour}\" \
             stroke-width=\"2\"/>"
        );
    }
}

fn cross(out: &mut String, x: f64, y: f64) {
    let _ = writeln!(
        out,
        "<path d=\"M{:.1} {:.1}l12 12m0 -12l-12 12\" stroke=\"{KILLED}\" stroke-width=\"3\" fill=\"none\"/>",
        x - 6.0,
        y - 6.0,
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn lives_are_bars_and_crashes_crosses() {
        let mut timeline = Timeline::default();
        timeline.mark(at(1), 0, Mark::Starts);
        timeline.mark(at(1), 2, Mark::Starts);
        timeline.mark(at(3), 2, Mark::Killed);
        timeline.mark(at(4), 0, Mark::Moves);
        timeline.span(at(2), at(9), "OneWay".into());
        timeline.mended(at(5));
        timeline.ends(at(6), Some((at(6), "I3: <lost>".into())));
        let svg = draw("seed 7", &timeline);
        assert!(svg.contains(">n0<") && svg.contains(">n2<"));
        assert_eq!(svg.matches("height=\"18\"").count(), 2, "two lives");
        assert_eq!(svg.matches("<path").count(), 1, "one crash");
        assert!(
            svg.contains(&format!("width=\"{:.1}\" height=\"9\"", 3.0 * SECOND)),
            "a cut ends when mended"
        );
        assert!(svg.contains("I3: &lt;lost&gt;"));
    }

    #[test]
    fn a_run_without_nodes_is_still_a_picture() {
        assert!(draw("nothing", &Timeline::default()).ends_with("</svg>\n"));
    }
}
