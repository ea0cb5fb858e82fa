//! `lowbit quantize`: 16-bit weights to a low-bit format.

use std::io::Write;

use lowbit::Format;
use lowbit_llm::convert::{self, QuantizeOptions};
use regex::Regex;

use crate::args;
use crate::commands::convert::{ConvertArgs, Watch, print_report};
use crate::failure::Result;

/// Quantize a model or a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit quantize models/tinybard tinybard-nf4
  lowbit quantize models/tinybard tinybard-nf4dq --format nf4 --double-quant
  lowbit quantize MODEL OUT --format int8 --skip down_proj --include lm_head
  lowbit quantize in.safetensors out.safetensors --format fp4 --block-size 128

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
    #[command(flatten)]
    convert: ConvertArgs,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    args::check_block_size(args.format, args.block_size)?;
    args::check_double_quant(args.format, args.double_quant)?;
    if !args::holds_negatives(args.format) {
        let name = args.format.name;
        writeln!(anstream::stderr(), "note: {name} holds no negative numbers; they become 0")?;
    }
    let options = QuantizeOptions {
        format: args.format,
        block_size: args.block_size,
        double_quant: args.double_quant,
        skip: args.skip.clone(),
        include: args.include.clone(),
        write: args.convert.write_options(),
    };
    let ConvertArgs { input, output, .. } = &args.convert;
    let report = convert::quantize(input, output, &options, &Watch::new("quantizing")?)?;
    print_report(&report, output, out)
}
