//! `lowbit completions`: scripts that complete the command in a shell.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::commands::Cli;
use crate::failure::Result;

/// Write a script that completes lowbit's arguments in your shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit completions bash > ~/.local/share/bash-completion/completions/lowbit
  lowbit completions zsh > ~/.zfunc/_lowbit
  lowbit completions fish > ~/.config/fish/completions/lowbit.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    // The generator panics where it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lowbit", &mut script);
    out.write_all(&script)?;
    Ok(())
}
