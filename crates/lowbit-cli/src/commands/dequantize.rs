//! `lowbit dequantize`: back to plain numbers.

use std::io::Write;

use lowbit::DType;
use lowbit_llm::convert::{self, DequantizeOptions};

use crate::args;
use crate::commands::convert::{ConvertArgs, Watch, print_report};
use crate::failure::Result;

/// Turn a quantized model or file back into plain numbers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit dequantize models/tinybard-nf4dq tinybard-bf16
  lowbit dequantize weights-fp4.safetensors weights.safetensors --dtype f32")]
pub struct Args {
    /// Type of the numbers [default: what each tensor had before it was quantized]
    #[arg(long, value_name = "TYPE", value_parser = args::dtype())]
    dtype: Option<DType>,
    #[command(flatten)]
    convert: ConvertArgs,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let options = DequantizeOptions { dtype: args.dtype, write: args.convert.write_options() };
    let ConvertArgs { input, output, .. } = &args.convert;
    let report = convert::dequantize(input, output, &options, &Watch::new("dequantizing")?)?;
    print_report(&report, output, out)
}
