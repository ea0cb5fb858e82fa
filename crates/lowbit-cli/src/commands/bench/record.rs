//! What `bench` reports: a table for people, one JSON object a line for programs.

use std::io::Write;

use lowbit::{Cpu, DType};
use serde::Serialize;

use super::on::On;
use crate::commands::print_json;
use crate::failure::Result;
use crate::ui::{self, Align, Table};

/// One measured case.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    pub op: &'static str,
    pub format: String,
    /// `[N, K]` of the weights, `[1, N]` of a parameter; none for a whole model.
    pub shape: Option<[usize; 2]>,
    /// Rows of `x`, for linear; tokens at once, for a model.
    pub rows: Option<usize>,
    /// How a product on matrix hardware was dealt, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Of the activations, or of the unquantized weights.
    pub dtype: &'static str,
    pub device: &'static str,
    /// The instruction set whose kernels ran, or the adapter.
    pub isa: String,
    pub threads: usize,
    pub ms_min: f64,
    pub ms_median: f64,
    /// From the median: packed weights and scales, and what else is read or written once.
    pub gb_s: f64,
    /// From the median; none where nothing is multiplied.
    pub gflop_s: Option<f64>,
    /// linear and model: relative to the output's root mean square; else the share of numbers that
    /// differ.
    pub max_error: f64,
    /// What memory bandwidth and multiply-add rate, measured in the same run, allow.
    pub floor_ms: f64,
    pub block_size: Option<usize>,
    pub double_quant: bool,
    /// Tokens a second from the median, for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tok_s: Option<f64>,
}

/// A record, and the pace of the memory while it was made.
#[derive(Debug)]
pub struct Measured {
    pub record: Record,
    /// Bytes a second.
    pub bandwidth: f64,
}

/// Collects records for a table, or writes them as they come.
pub struct Report<'a> {
    out: &'a mut dyn Write,
    json: bool,
    table: Table,
    fastest_memory: f64,
}

impl<'a> Report<'a> {
    pub fn new(json: bool, out: &'a mut dyn Write) -> Self {
        let table = Table::new([
            ("format", Align::Left),
            ("shape", Align::Right),
            ("rows", Align::Right),
            ("dtype", Align::Left),
            ("min ms", Align::Right),
            ("median", Align::Right),
            ("floor", Align::Right),
            ("GB/s", Align::Right),
            ("GFLOP/s", Align::Right),
            ("error", Align::Right),
        ]);
        Report { out, json, table, fastest_memory: 0.0 }
    }

    pub fn add(&mut self, measured: Measured) -> Result {
        let Measured { record, bandwidth } = measured;
        self.fastest_memory = self.fastest_memory.max(bandwidth);
        if self.json {
            print_json(self.out, &record)?;
            return Ok(self.out.flush()?);
        }
        self.table.row([
            record.format,
            record.shape.map_or("-".into(), |[n, k]| format!("{n}x{k}")),
            [record.rows.map(|rows| rows.to_string()), record.schedule]
                .into_iter()
                .flatten()
                .reduce(|rows, schedule| format!("{rows} {schedule}"))
                .unwrap_or_else(|| "-".into()),
            record.dtype.to_owned(),
            milliseconds(record.ms_min),
            milliseconds(record.ms_median),
            milliseconds(record.floor_ms),
            format!("{:.1}", record.gb_s),
            record.gflop_s.map_or("-".into(), |rate| format!("{rate:.1}")),
            if record.max_error == 0.0 { "0".into() } else { format!("{:.0e}", record.max_error) },
        ]);
        Ok(())
    }

    /// Writes the table, and what the floor is made of.
    pub fn finish(self, on: &On, note: Option<&str>) -> Result {
        if self.json {
            return Ok(());
        }
        self.table.print(self.out)?;
        let dim = ui::DIM;
        let limits = match on {
            On::Cpu(limits) => limits,
            On::Gpu(place) => {
                return Ok(writeln!(
                    self.out,
                    "\n{dim}{}. The floor is what {:.0} GB/s of reading, measured in this run, allows.{dim:#}",
                    place.gpu.adapter().name(),
                    1e-9 * place.bandwidth,
                )?);
            }
        };
        writeln!(
            self.out,
            "\n{dim}{} threads, {}. The floor is what {:.1} GB/s of reading, and {:.0} GFLOP/s in f32\n\
             or {:.0} in 16 bit, allow: all measured in this run.{dim:#}",
            rayon::current_num_threads(),
            Cpu::best().isa().name(),
            1e-9 * self.fastest_memory,
            1e-9 * limits.flops(DType::F32),
            1e-9 * limits.flops(DType::BF16),
        )?;
        if let Some(note) = note {
            writeln!(self.out, "{dim}{note}{dim:#}")?;
        }
        Ok(())
    }
}

/// Four digits.
fn milliseconds(ms: f64) -> String {
    let decimals = if ms < 10.0 {
        3
    } else if ms < 100.0 {
        2
    } else {
        1
    };
    format!("{ms:.decimals$}")
}
