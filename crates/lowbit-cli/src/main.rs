//! The `lowbit` command: the only part of lowbit that prints.
//!
//! Each command is one file in [`commands`] with its arguments and a `run` that writes to a given
//! stream. Here they are parsed, and what went wrong becomes one line and an exit status.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod device;
mod failure;
mod interrupt;
mod machine;
mod model;
mod sampling;
mod tuned;
mod ui;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use commands::Cli;
use failure::Failure;

fn main() -> ExitCode {
    let mut out = anstream::AutoStream::auto(std::io::stdout().lock());
    let outcome = Cli::try_parse()
        .map_err(Failure::from)
        .and_then(|cli| cli.run(&mut out))
        .and_then(|()| Ok(out.flush()?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
