//! The ring as a picture.
//!
//! Belongs here: shapes and colours. Stays out: who owns what.
//! Units: places on the ring are fractions of the circle, clockwise from the top.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use meshd::admin::answers::{RingAnswer, RingNodeLine};

const SIZE: f64 = 560.0;
const CENTRE: f64 = SIZE / 2.0;
/// The outer ring: every arc where it is.
const OUTER: (f64, f64) = (178.0, 250.0);
/// The inner ring: the arcs of each node put together.
const INNER: (f64, f64) = (150.0, 166.0);
/// Space between the nodes of the inner ring, as a fraction of the circle.
const GAP: f64 = 0.004;
const LEGEND_WIDTH: f64 = 320.0;
const LEGEND_LINE: f64 = 44.0;

/// Colours that stay apart on white, also for most colour-blind people (after Okabe and Ito, and Tol).
const COLOURS: [&str; 10] = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e69f00", "#009e73", "#882255",
    "#777777",
];

/// The picture, as the text of an SVG file.
pub(crate) fn draw(ring: &RingAnswer) -> String {
    let lines = f64::from(u32::try_from(ring.nodes.len()).unwrap_or(u32::MAX));
    let legend_height = lines * LEGEND_LINE;
    let (width, height) = (SIZE + LEGEND_WIDTH, SIZE.max(legend_height + 80.0));
    let middle = height / 2.0;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\">\n\
         <title>Ring {digest}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <g transform=\"translate({CENTRE} {middle})\">\n",
        digest = ring.ring_digest,
    );
    for arc in &ring.arcs {
        segment(&mut out, OUTER, (arc.from, arc.to), &colour(arc.node));
    }
    let mut from = 0.0;
    for (index, node) in ring.nodes.iter().enumerate() {
        let gap = if ring.nodes.len() > 1 { GAP.min(node.share / 4.0) } else { 0.0 };
        segment(&mut out, INNER, (from + gap / 2.0, from + node.share - gap / 2.0), &colour(index));
        from += node.share;
    }
    centre(&mut out, ring);
    out.push_str("</g>\n");
    let top = (height - legend_height) / 2.0;
    for (index, node) in ring.nodes.iter().enumerate() {
        let line = f64::from(u32::try_from(index).unwrap_or(u32::MAX));
        legend(&mut out, node, &colour(index), top + line * LEGEND_LINE);
    }
    out.push_str("</svg>\n");
    out
}

fn centre(out: &mut String, ring: &RingAnswer) {
    let count = ring.nodes.len();
    let plural = if count == 1 { "" } else { "s" };
    let _ = write!(
        out,
        "<text text-anchor=\"middle\" y=\"2\" font-size=\"54\" font-weight=\"600\" fill=\"#1c2733\">{count}</text>\n\
         <text text-anchor=\"middle\" y=\"30\" font-size=\"17\" fill=\"#5b6875\">node{plural} on the ring</text>\n\
         <text text-anchor=\"middle\" y=\"58\" font-size=\"12\" fill=\"#8a96a3\" \
         font-family=\"ui-monospace, monospace\">{}</text>\n",
        escaped(&ring.ring_digest)
    );
}

fn legend(out: &mut String, node: &RingNodeLine, colour: &str, top: f64) {
    let (x, right) = (SIZE + 16.0, SIZE + LEGEND_WIDTH - 32.0);
    let bar = (right - x - 26.0) * node.share.clamp(0.0, 1.0);
    let name = escaped(&shortened(&node.name));
    let _ = write!(
        out,
        "<rect x=\"{x}\" y=\"{top:.1}\" width=\"14\" height=\"14\" rx=\"3\" fill=\"{colour}\"/>\n\
         <text x=\"{name_x}\" y=\"{baseline:.1}\" font-size=\"16\" fill=\"#1c2733\">{name}</text>\n\
         <text x=\"{right}\" y=\"{baseline:.1}\" font-size=\"16\" fill=\"#1c2733\" text-anchor=\"end\" \
         style=\"font-variant-numeric: tabular-nums\">{share:.1} %</text>\n\
         <rect x=\"{name_x}\" y=\"{bar_y:.1}\" width=\"{bar:.1}\" height=\"4\" rx=\"2\" fill=\"{colour}\" \
         fill-opacity=\"0.55\"/>\n",
        name_x = x + 26.0,
        baseline = top + 12.5,
        bar_y = top + 20.0,
        share = node.share * 100.0,
    );
}

/// A stretch of a ring between two radii.
fn segment(out: &mut String, (inner, outer): (f64, f64), (from, to): (f64, f64), colour: &str) {
    if to - from >= 0.999_999 {
        let (radius, width) = (f64::midpoint(inner, outer), outer - inner);
        let _ = writeln!(
            out,
            "<circle r=\"{radius}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
        return;
    }
    let large = u8::from(to - from > 0.5);
    let point = |radius: f64, place: f64| {
        let angle = place * TAU;
        format!("{:.3} {:.3}", radius * angle.sin(), -radius * angle.cos())
    };
    let _ = writeln!(
        out,
        "<path d=\"M{} A{outer} {outer} 0 {large} 1 {} L{} A{inner} {inner} 0 {large} 0 {}Z\" fill=\"{colour}\"/>",
        point(outer, from),
        point(outer, to),
        point(inner, to),
        point(inner, from),
    );
}

/// Beyond the hand-picked colours: hues a golden angle apart.
fn colour(index: usize) -> String {
    match COLOURS.get(index) {
        Some(colour) => (*colour).to_owned(),
        None => {
            let hue = f64::from(u32::try_from(index).unwrap_or(u32::MAX)) * 137.507_764 % 360.0;
            format!("hsl({hue:.0} 45% {}%)", if index.is_multiple_of(2) { 45 } else { 62 })
        }
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 20 {
        return name.to_owned();
    }
    name.chars().take(19).chain(['…']).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use meshd::admin::answers::Arc;

    use super::*;

    fn node(name: &str, share: f64) -> RingNodeLine {
        RingNodeLine { name: name.into(), share, ..RingNodeLine::default() }
    }

    #[test]
    fn each_arc_is_drawn_and_each_node_named() {
        let ring = RingAnswer {
            node: "a".into(),
            ring_digest: "00ff".into(),
            nodes: vec![node("a<b", 0.75), node("c", 0.25)],
            arcs: vec![Arc { from: 0.0, to: 0.25, node: 1 }, Arc { from: 0.25, to: 1.0, node: 0 }],
        };
        let svg = draw(&ring);
        assert_eq!(svg.matches("<path").count(), 4);
        assert!(svg.contains("a&lt;b") && svg.contains("75.0 %") && svg.contains("nodes on the ring"));
        assert!(svg.contains("M0.000 -250.000 A250 250 0 0 1 250.000 -0.000"), "{svg}");
    }

    #[test]
    fn one_node_is_a_whole_circle_and_none_is_still_a_picture() {
        let alone = RingAnswer {
            nodes: vec![node("a", 1.0)],
            arcs: vec![Arc { from: 0.0, to: 1.0, node: 0 }],
            ..RingAnswer::default()
        };
        assert_eq!(draw(&alone).matches("<circle").count(), 2);
        assert!(draw(&RingAnswer::default()).contains(">0<"));
    }

    #[test]
    fn colours_do_not_run_out() {
        let colours: std::collections::BTreeSet<String> = (0..60).map(colour).collect();
        assert_eq!(colours.len(), 60);
    }
}
