//! `lowbit formats`: the table of formats.

use std::io::Write;

use lowbit::format::{Format, ScaleKind};
use lowbit::{Geometry, formats};
use serde::Serialize;

use crate::commands::print_json;
use crate::failure::Result;
use crate::ui::{Align, Table};

/// List the formats, their sizes and what they are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit formats
  lowbit formats --markdown    # the table in README.md
  lowbit formats --json")]
pub struct Args {
    /// Write a Markdown table
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The tensor whose bits per weight the table shows.
const SHAPE: [usize; 2] = [4096, 4096];

#[derive(Serialize)]
struct Row {
    name: &'static str,
    about: &'static str,
    /// Scales at the default block size included.
    bits_per_weight: f64,
    /// The same with double quantized scales, where the format can have them.
    bits_per_weight_double_quantized: Option<f64>,
    block_size: usize,
    /// What a block is where no size is asked for, if not so many weights.
    whole: Option<&'static str>,
    /// None where a block is always a row or a tensor.
    block_sizes: Option<Vec<usize>>,
}

impl Row {
    fn new(format: &'static Format) -> Result<Self> {
        let g = Geometry::new(format, &SHAPE, None)?;
        let weights = (g.n * g.k) as f64;
        let bits = |scale_bytes: usize| {
            let book = if format.codebook().is_none() { format.codebook_bytes() } else { 0 };
            8.0 * (g.code_bytes + scale_bytes + book) as f64 / weights
        };
        // One code a block, one f32 for each block of those, and the offset.
        let nested = g.blocks + 4 * g.blocks.div_ceil(lowbit::NESTED_BLOCK_SIZE) + 4;
        Ok(Row {
            name: format.name,
            about: format.about,
            bits_per_weight: bits(match format.scale {
                ScaleKind::Absmax | ScaleKind::Step => 4 * g.blocks,
                ScaleKind::Absmean => 2 * g.blocks,
                ScaleKind::E8M0 => g.blocks,
            }),
            bits_per_weight_double_quantized: format.can_double_quantize().then(|| bits(nested)),
            block_size: g.block_size,
            whole: match (format.default_block_size(), format.in_rows()) {
                (Some(_), _) => None,
                (None, true) => Some("row"),
                (None, false) => Some("tensor"),
            },
            block_sizes: Some(format.block_sizes()).filter(|sizes| !sizes.is_empty()),
        })
    }

    /// `32..4096 (64)`, the default last; `32`; or `row`.
    fn block_range(&self) -> String {
        let default = || self.whole.map_or(self.block_size.to_string(), str::to_owned);
        match self.block_sizes.as_deref() {
            None | Some([]) => default(),
            Some([only]) => only.to_string(),
            Some([first, .., last]) => format!("{first}..{last} ({})", default()),
        }
    }
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let rows = formats::ALL.iter().map(|f| Row::new(f)).collect::<Result<Vec<_>>>()?;
    if args.json {
        return print_json(out, &rows);
    }
    let (bits, double) = match args.markdown {
        true => ("bits per weight", "double quantized"),
        false => ("bits", "double"),
    };
    let mut table = Table::new([
        ("format", Align::Left),
        (bits, Align::Right),
        (double, Align::Right),
        ("block size", Align::Left),
        ("what it is", Align::Left),
    ]);
    for row in &rows {
        let double = row.bits_per_weight_double_quantized;
        table.row([
            if args.markdown { format!("`{}`", row.name) } else { row.name.to_owned() },
            format!("{:.3}", row.bits_per_weight),
            double.map_or("-".into(), |bits| format!("{bits:.3}")),
            row.block_range(),
            row.about.to_owned(),
        ]);
    }
    if args.markdown {
        return table.print_markdown(out);
    }
    table.print(out)?;
    let [n, k] = SHAPE;
    writeln!(
        out,
        "\nbits: per weight of a {n}x{k} tensor, scales included; double: with the scales\n\
         quantized as well (--double-quant); block size: weights that share a scale."
    )?;
    Ok(())
}
