//! Arguments that several commands take, and how their values are read.

use std::ffi::OsStr;
use std::path::Path;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use lowbit::{DType, Format, formats};
use lowbit_gpu::Schedule;
use regex::Regex;

use crate::failure::{Failure, Result};

/// How many threads compute.
#[derive(Debug, clap::Args)]
pub struct Threads {
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    /// How many were asked for.
    pub fn count(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// Sizes the pool of threads that every kernel shares.
    pub fn apply(&self) -> Result {
        let Some(threads) = self.threads else { return Ok(()) };
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .map_err(|error| Failure::failed(format!("could not start {threads} threads: {error}")))
    }
}

/// A format by its name, or a variant of one by its; help and completions list the formats.
#[derive(Debug, Clone)]
struct FormatParser;

impl FormatParser {
    fn names() -> impl Iterator<Item = PossibleValue> {
        formats::ALL.iter().map(|f| PossibleValue::new(f.name).help(f.about))
    }
}

impl TypedValueParser for FormatParser {
    type Value = &'static Format;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> std::result::Result<Self::Value, clap::Error> {
        if let Some(format) = value.to_str().and_then(|name| formats::by_name(name).ok()) {
            return Ok(format);
        }
        // Says what there is, and what was perhaps meant.
        let listed = PossibleValuesParser::new(Self::names()).try_map(|n| formats::by_name(&n));
        listed.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Self::names()))
    }
}

/// A format by its name; help and completions list them all.
pub fn format() -> impl TypedValueParser<Value = &'static Format> {
    FormatParser
}

/// `f32`, `f16` or `bf16`.
pub fn dtype() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(DType::ALL.map(DType::name)).try_map(|name| {
        DType::ALL.into_iter().find(|d| d.name() == name).ok_or("expected f32, f16 or bf16")
    })
}

/// A regular expression.
pub fn regex(text: &str) -> std::result::Result<Regex, String> {
    // The library draws a picture over several lines; the last one says what is wrong.
    Regex::new(text).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default();
        reason.trim().trim_start_matches("error: ").to_owned()
    })
}

/// Formats for tensors whose names an expression finds.
#[derive(Debug, Clone)]
pub struct FormatMap(pub Vec<(Regex, &'static Format)>);

/// `REGEX=FORMAT,REGEX=FORMAT`.
pub fn format_map(text: &str) -> std::result::Result<FormatMap, String> {
    let one = |part: &str| {
        let (pattern, name) =
            part.rsplit_once('=').ok_or_else(|| format!("expected REGEX=FORMAT, got {part:?}"))?;
        let format = formats::by_name(name.trim()).map_err(|error| error.to_string())?;
        Ok((regex(pattern.trim())?, format))
    };
    text.split(',').map(one).collect::<std::result::Result<_, String>>().map(FormatMap)
}

/// `NxK`, both at least 1.
pub fn shape(text: &str) -> std::result::Result<[usize; 2], String> {
    let parsed = text.split_once('x').and_then(|(n, k)| Some([n.parse().ok()?, k.parse().ok()?]));
    match parsed {
        Some([n, k]) if n > 0 && k > 0 => Ok([n, k]),
        _ => Err("expected NxK, for example 4096x4096".into()),
    }
}

/// A number that is finite and at least 0.
pub fn not_negative(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("expected a number that is at least 0".into()),
    }
}

/// A finite number above 0.
pub fn positive(text: &str) -> std::result::Result<f32, String> {
    not_negative(text).ok().filter(|x| *x > 0.0).ok_or("expected a number above 0".into())
}

/// Seconds, an hour at most.
pub fn seconds(text: &str) -> std::result::Result<f32, String> {
    let expected = "expected seconds, above 0 and at most 3600";
    positive(text).ok().filter(|s| *s <= 3600.0).ok_or(expected.into())
}

/// A number from 0 to 1.
pub fn fraction(text: &str) -> std::result::Result<f32, String> {
    not_negative(text).ok().filter(|x| *x <= 1.0).ok_or("expected a number from 0 to 1".into())
}

/// A number from above 0 to 1.
pub fn positive_fraction(text: &str) -> std::result::Result<f32, String> {
    let expected = "expected a number above 0, at most 1";
    fraction(text).ok().filter(|x| *x > 0.0).ok_or(expected.into())
}

/// A whole number, `min` or more.
pub fn at_least(min: usize) -> impl Fn(&str) -> std::result::Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if n >= min => Ok(n),
        _ => Err(format!("expected a whole number, {min} or more")),
    }
}

/// Refuses a block size that the format cannot have, before any file is opened.
pub fn check_block_size(format: &Format, asked: Option<usize>) -> Result {
    let sizes = format.block_sizes();
    match asked {
        Some(_) if sizes.is_empty() => Err(Failure::usage(format!(
            "format {} keeps one scale a row or tensor and takes no --block-size; leave it out",
            format.name
        ))),
        Some(b) if !sizes.contains(&b) => {
            let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
            let row = if format.default_block_size().is_none() { ", or none for rows" } else { "" };
            Err(Failure::usage(format!(
                "--block-size {b}: format {} takes {}{row}",
                format.name,
                sizes.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

/// Refuses double quantization for a format whose scales are small already.
pub fn check_double_quant(format: &Format, asked: bool) -> Result {
    if asked && !format.can_double_quantize() {
        return Err(Failure::usage(format!(
            "--double-quant: the scales of format {} are small already; leave it out",
            format.name
        )));
    }
    Ok(())
}

/// Whether a format holds numbers of both signs, as weights are.
pub fn holds_negatives(format: &Format) -> bool {
    format.codebook().is_none_or(|values| values.iter().any(|v| *v < 0.0))
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::failed(format!("could not read {}: {error}", path.display())))?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::failed(format!(
            "{}: expected UTF-8 text, got something else at byte {}; convert the file first",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })
}

/// `whole`, `split:PARTS` or `stream:GROUPS`.
pub fn schedule(text: &str) -> std::result::Result<Schedule, String> {
    let count = |count: &str| match count.parse() {
        Ok(0) | Err(_) => {
            Err(format!("expected a number from 1 on after the colon, got {count:?}"))
        }
        Ok(count) => Ok(count),
    };
    match text.split_once(':') {
        None if text == "whole" => Ok(Schedule::Whole),
        Some(("split", parts)) => count(parts).map(Schedule::Split),
        Some(("stream", groups)) => count(groups).map(Schedule::Stream),
        _ => Err("expected whole, split:PARTS or stream:GROUPS".into()),
    }
}

/// What [`schedule`] reads.
pub fn schedule_name(schedule: Schedule) -> String {
    match schedule {
        Schedule::Whole => "whole".into(),
        Schedule::Split(parts) => format!("split:{parts}"),
        Schedule::Stream(groups) => format!("stream:{groups}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_two_positive_numbers() {
        assert_eq!(shape("4096x11008"), Ok([4096, 11008]));
        for bad in ["", "4096", "0x4", "4x", "-1x4", "4x4x4", "99999999999999999999x1"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_know_their_bounds() {
        assert_eq!(fraction("0.9"), Ok(0.9));
        assert!(["nan", "inf", "-1", "1.5", "x"].iter().all(|bad| fraction(bad).is_err()));
        assert!(["nan", "inf", "-1", "0"].iter().all(|bad| positive(bad).is_err()));
    }

    #[test]
    fn a_map_pairs_expressions_with_formats() {
        let map = format_map(r"mlp\..*=sub1, attn=t158,lm_head=sub1-v16-c4096").expect("a map").0;
        let names: Vec<_> = map.iter().map(|(regex, f)| (regex.as_str(), f.name)).collect();
        let expected = [(r"mlp\..*", "sub1"), ("attn", "t158"), ("lm_head", "sub1-v16-c4096")];
        assert_eq!(names, expected);
        for (bad, words) in [("mlp", "REGEX=FORMAT"), ("a=nf5", "nf5"), ("(=nf4", "unclosed")] {
            let error = format_map(bad).expect_err(bad);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_bad_expression_is_told_in_one_line() {
        let error = regex("layers.(").expect_err("an open group");
        assert_eq!(error, "unclosed group");
    }

    #[test]
    fn every_format_takes_its_own_block_sizes_and_no_other() {
        for f in formats::ALL {
            assert!(f.block_sizes().iter().all(|b| check_block_size(f, Some(*b)).is_ok()));
            assert!(matches!(check_block_size(f, Some(7)), Err(Failure::Usage(_))));
        }
    }
}
