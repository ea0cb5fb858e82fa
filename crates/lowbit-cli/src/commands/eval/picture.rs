//! Size against KL divergence as an SVG file that reads on light and dark paper.

use std::fmt::Write;

use super::sweep::Row;

/// Width and height, and the part of them that is not the plot.
const SIZE: [f64; 2] = [720.0, 420.0];
const MARGIN: [f64; 2] = [64.0, 48.0];

/// Draws every row that has a KL divergence: filled points are calibrated, both axes logarithmic.
pub fn draw(rows: &[Row]) -> String {
    let points: Vec<(&Row, f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, row.bits_per_weight.ln(), row.kl?.max(1e-6).ln())))
        .collect();
    let x = Axis::over(points.iter().map(|p| p.1), MARGIN[0], SIZE[0] - 16.0);
    let y = Axis::over(points.iter().map(|p| p.2), SIZE[1] - MARGIN[1], 16.0);
    let [width, height] = SIZE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#777\">\n"
    );
    for bits in [0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0_f64] {
        if let Some(at) = x.place(bits.ln()) {
            let (top, bottom) = (16.0, height - MARGIN[1]);
            line(&mut svg, [at, top, at, bottom]);
            text(&mut svg, at, bottom + 18.0, "middle", &bits.to_string());
        }
    }
    for kl in [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0_f64] {
        if let Some(at) = y.place(kl.ln()) {
            line(&mut svg, [MARGIN[0], at, width - 16.0, at]);
            text(&mut svg, MARGIN[0] - 8.0, at + 4.0, "end", &kl.to_string());
        }
    }
    let middle = (MARGIN[0] + width) / 2.0;
    text(
        &mut svg,
        middle,
        height - 8.0,
        "middle",
        "bits per weight, scales and codebooks included",
    );
    text(
        &mut svg,
        MARGIN[0] + 8.0,
        32.0,
        "start",
        "KL divergence from the original, nats; filled points are calibrated",
    );
    let mut named = "";
    for (row, bits, kl) in points {
        let (Some(cx), Some(cy)) = (x.place(bits), y.place(kl)) else { continue };
        let fill = if row.calibrated { "#2a7ae2" } else { "none" };
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{fill}\" stroke=\"#2a7ae2\" \
             stroke-width=\"2\"/>"
        );
        // One name for a format, beside the first of its points: more would cover other points.
        if row.format != named {
            text(&mut svg, cx + 9.0, cy + 4.0, "start", &row.format);
            named = &row.format;
        }
    }
    svg + "</svg>\n"
}

/// From numbers to places.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// So that all numbers have a place between `start` and `end`, and some room.
    fn over(numbers: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let least = numbers.clone().fold(f64::INFINITY, f64::min);
        let most = numbers.fold(f64::NEG_INFINITY, f64::max);
        let (least, most) = if least <= most { (least, most) } else { (0.0, 0.0) };
        let room = 0.12 * (most - least) + 0.1;
        Axis { from: least - room, to: most + 2.0 * room, start, end }
    }

    /// Where a number is, if within the axis.
    fn place(&self, number: f64) -> Option<f64> {
        let part = (number - self.from) / (self.to - self.from);
        (0.0..=1.0).contains(&part).then_some(self.start + part * (self.end - self.start))
    }
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ccc\" \
         stroke-width=\"0.5\"/>"
    );
}

/// A text without characters that mean something in XML: names of formats and numbers.
fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(format: &str, bits: f64, kl: Option<f64>, calibrated: bool) -> Row {
        Row {
            format: format.to_owned(),
            calibrated,
            bits_per_weight: bits,
            bytes: 1,
            perplexity: 10.0,
            kl,
            top1_agreement: None,
            text: String::new(),
        }
    }

    #[test]
    fn every_row_with_a_divergence_is_a_point() {
        let rows = [
            row("bf16", 16.0, None, false),
            row("nf4", 4.5, Some(0.01), false),
            row("sub1", 0.8, Some(1.5), true),
        ];
        let svg = draw(&rows);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains(">nf4<") && svg.contains(">sub1<"));
        // Fewer bits are further left, less loss further down.
        let place = |name: &str, key: &str| -> f64 {
            let circle = svg.split(&format!(">{name}")).next().unwrap().rsplit("<circle").next();
            let value = circle.unwrap().split(&format!("{key}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().parse().unwrap()
        };
        assert!(place("sub1", "cx") < place("nf4", "cx"));
        assert!(place("sub1", "cy") < place("nf4", "cy"));
        assert_eq!(draw(&[]).matches("<circle").count(), 0);
    }
}
