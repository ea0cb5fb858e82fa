//! `lowbit quantize`: 16-bit weights to a low-bit format.

use std::io::Write;
use std::path::PathBuf;

use lowbit::Format;
use lowbit::quantizers::{self, Search};
use lowbit_llm::Tokenizer;
use lowbit_llm::convert::{self, Calibration, QuantizeOptions};
use regex::Regex;

use crate::args::{self, FormatMap};
use crate::commands::convert::{ConvertArgs, Watch, print_report};
use crate::failure::{Failure, Result};

/// Quantize a model or a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit quantize models/tinybard tinybard-nf4
  lowbit quantize models/tinybard tinybard-nf4dq --format nf4 --double-quant
  lowbit quantize MODEL OUT --format int8 --skip down_proj --include lm_head
  lowbit quantize in.safetensors out.safetensors --format fp4 --block-size 128
  lowbit quantize MODEL OUT --format sub1 --bits 0.8 --calibrate text.txt
  lowbit quantize MODEL OUT --format t158 --map 'mlp=sub1,q_proj|k_proj=nf4'

Of a model, the linear layers are quantized; lm_head, embeddings and norms stay as they are. Of a \
bare file, every floating-point tensor whose name ends in `weight`. bitsandbytes and transformers \
load the result where the format is theirs (`lowbit formats` tells).")]
pub struct Args {
    /// The format
    #[arg(long, value_name = "F", default_value = "nf4", value_parser = args::format())]
    format: &'static Format,
    /// Weights that share a scale [default: the format's own]
    #[arg(long, value_name = "B")]
    block_size: Option<usize>,
    /// Quantize the scales as well
    #[arg(long)]
    double_quant: bool,
    /// Leave tensors whose name this expression finds; repeatable
    #[arg(long, value_name = "REGEX", value_parser = args::regex)]
    skip: Vec<Regex>,
    /// Quantize tensors whose name this finds, though left by default; repeatable
    #[arg(long, value_name = "REGEX", value_parser = args::regex)]
    include: Vec<Regex>,
    /// Bits of a code for each weight, where the format's codebook has no fixed size: 0.9, 0.8, 0.75, 0.7
    #[arg(long, value_name = "BITS", conflicts_with = "codebook")]
    bits: Option<f64>,
    /// The same by the codebook's size: L weights in a code, C codes
    #[arg(long, value_name = "LxC", value_parser = args::shape)]
    codebook: Option<[usize; 2]>,
    /// Formats of some layers: REGEX=FORMAT, separated by commas; the first that finds a name counts
    #[arg(long, value_name = "MAP", value_parser = args::format_map)]
    map: Option<FormatMap>,
    /// A text to calibrate with: what a layer loses is made up for by what follows, as the text needs it
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Windows of that text to use [default: as many as there are, 128 at most]
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = args::at_least(1))]
    samples: Option<usize>,
    /// Tokens in a window of that text
    #[arg(long, value_name = "N", requires = "calibrate", default_value = "256",
          value_parser = args::at_least(2))]
    window: usize,
    /// Mean magnitudes as scales, as they are, and not fitted to the codes
    #[arg(long)]
    no_fit: bool,
    /// Store a mean of each row or group as well, in a format that may have it
    #[arg(long, conflicts_with = "no_fit")]
    means: bool,
    /// Write a one-bit format as MLX's affine quantization, in groups of --block-size
    #[arg(long, requires = "block_size")]
    mlx: bool,
    /// Of random choices in a search
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    #[command(flatten)]
    convert: ConvertArgs,
}

impl Args {
    /// The format, in the variant that was asked for.
    fn format(&self) -> Result<&'static Format> {
        let chosen = match (self.bits, self.codebook) {
            (Some(bits), _) => self.format.with_bits(bits),
            (None, Some([length, codes])) => self.format.with_codebook(length, codes),
            (None, None) => return Ok(self.format),
        };
        chosen.map_err(|error| Failure::usage(error.to_string()))
    }

    fn calibration(&self) -> Result<Option<Calibration>> {
        let Some(path) = &self.calibrate else { return Ok(None) };
        let text = args::read_text(path)?;
        let tokens = Tokenizer::open(&self.convert.input)?.encode(&text)?;
        Ok(Some(Calibration { tokens, samples: self.samples, window: self.window }))
    }
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let format = args.format()?;
    args::check_block_size(format, args.block_size)?;
    args::check_double_quant(format, args.double_quant)?;
    if !args::holds_negatives(format) {
        let name = format.name;
        writeln!(anstream::stderr(), "note: {name} holds no negative numbers; they become 0")?;
    }
    let options = QuantizeOptions {
        block_size: args.block_size,
        double_quant: args.double_quant,
        skip: args.skip.clone(),
        include: args.include.clone(),
        map: args.map.clone().map(|map| map.0).unwrap_or_default(),
        search: quantizers::Options {
            search: Search { seed: args.seed, ..Search::default() },
            fit: !args.no_fit,
            means: args.means,
        },
        mlx: args.mlx,
        calibration: args.calibration()?,
        write: args.convert.write_options(),
        ..QuantizeOptions::new(format)
    };
    let ConvertArgs { input, output, .. } = &args.convert;
    let report = convert::quantize(input, output, &options, &Watch::new("quantizing")?)?;
    print_report(&report, output, out)
}
