//! `kiln completion`: scripts that complete commands in a shell.

use anyhow::Result;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{Shell as Generator, generate};

use crate::args::Cli;
use crate::output::Output;

/// `kiln completion`
#[derive(Debug, Args)]
#[command(after_help = "\
bash:  kiln completion bash > ~/.local/share/bash-completion/completions/kiln
zsh:   kiln completion zsh > \"${fpath[1]}/_kiln\"
fish:  kiln completion fish > ~/.config/fish/completions/kiln.fish")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells there is a script for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub fn run(output: Output, args: &CompletionArgs) -> Result<()> {
    let shell = match args.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "kiln", &mut script);
    output.raw(&script)
}
