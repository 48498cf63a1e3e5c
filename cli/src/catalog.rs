//! `kiln catalog`: the whole catalog out of a database and into another, of whatever kind.
//!
//! Speaks with the database itself, not with a server: it works while no balancer runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_api::portable;
use kiln_api::{Catalog, Contents, Existing};
use serde_json::json;

use crate::output::Output;

const EXPORT_EXAMPLES: &str = "\
A line of JSON for each app, function and trigger, with their ids, and for what a fleet remembers
beside them: ticks that were fired, nodes that were removed, join tokens that were used. Calls
and logs are not part of it. Config stands in it as it is, passwords too: keep it safe.

The catalog may be in use; the text is of one moment. A database of an older version is brought
to this one's schema first.

Examples:
  kiln catalog export --db-url sqlite:///var/lib/kiln-lb/kiln.db > catalog.jsonl
  kiln catalog export --db-url postgres://kiln@db/kiln --file catalog.jsonl";

const IMPORT_EXAMPLES: &str = "\
All of it is taken in, or nothing. A database that has apps is refused, unless --replace says
that they go. Balancers that use the database follow within a second.

Examples:
  kiln catalog import --db-url mysql://kiln@db/kiln < catalog.jsonl
  FN_DB_URL=postgres://kiln:secret@db/kiln kiln catalog import --file catalog.jsonl";

/// Rows between two words on progress.
const TOLD_EVERY: usize = 50_000;

/// Which database.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// The catalog's database, as for `kiln start` and `kiln-lb`
    #[arg(long, env = "FN_DB_URL", value_name = "URL", hide_env_values = true)]
    db_url: String,
}

/// `kiln catalog export`
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// File to write, for its owner alone; it must not be there [default: standard output]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// `kiln catalog import`
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub struct ImportArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// File to read [default: standard input]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Remove the apps, functions and triggers that the database has
    #[arg(long)]
    replace: bool,
}

/// Runs `kiln catalog export`.
pub fn export(args: &ExportArgs) -> Result<()> {
    must_be_there(&args.database.db_url)?;
    let contents = with_catalog(&args.database.db_url, async |catalog| Ok(catalog.contents().await?))?;
    match &args.file {
        Some(path) => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = made.with_context(|| format!("cannot make {}", path.display()))?;
            let mut out = BufWriter::new(file);
            portable::write(&contents, &mut out)
                .and_then(|()| out.get_ref().sync_all())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => portable::write(&contents, BufWriter::new(io::stdout().lock()))
            .context("cannot write to standard output")?,
    }
    anstream::eprintln!("exported {}", summary(&contents));
    Ok(())
}

/// Runs `kiln catalog import`.
pub fn import(output: Output, args: &ImportArgs) -> Result<()> {
    let contents = if let Some(path) = &args.file {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        portable::read(BufReader::new(file))?
    } else {
        if io::stdin().is_terminal() {
            anstream::eprintln!("reading the catalog from the terminal; give --file or `< catalog.jsonl`");
        }
        portable::read(io::stdin().lock())?
    };
    let existing = if args.replace { Existing::Replaced } else { Existing::Refused };
    let written = AtomicUsize::new(0);
    let progress = |more: usize| {
        let before = written.fetch_add(more, Ordering::Relaxed);
        if before / TOLD_EVERY < (before + more) / TOLD_EVERY {
            anstream::eprintln!("{} rows are written", before + more);
        }
    };
    with_catalog(&args.database.db_url, async |catalog| {
        Ok(catalog.restore(&contents, existing, &progress).await?)
    })?;
    let value = json!({
        "apps": contents.catalog.apps.len(),
        "functions": contents.catalog.functions.len(),
        "triggers": contents.catalog.triggers.len(),
    });
    output.result(format!("Imported {}.", summary(&contents)), &value)
}

/// A file that is not there would be made, and be an empty catalog.
fn must_be_there(url: &str) -> Result<()> {
    let path = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    match path {
        Some(path) if path != ":memory:" => {
            fs::metadata(Path::new(path)).with_context(|| format!("there is no database {path}")).map(drop)
        }
        _ => Ok(()),
    }
}

fn with_catalog<T>(url: &str, work: impl AsyncFnOnce(&Catalog) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let catalog = Catalog::open(url).await?;
        let done = work(&catalog).await;
        catalog.close().await;
        done
    })
}

fn summary(contents: &Contents) -> String {
    let catalog = &contents.catalog;
    format!(
        "{} apps, {} functions and {} triggers",
        catalog.apps.len(),
        catalog.functions.len(),
        catalog.triggers.len()
    )
}
