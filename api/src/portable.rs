//! The whole catalog as text, to move it between databases: a line of JSON for each thing.
//!
//! Owns the form. The first line says what it is, the last one how many lines stand between, so that what is cut off is
//! never taken for whole. A form that older versions cannot read gets another number.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read, Write};

use kiln_shared::ids::{AppId, FunctionId};
use kiln_shared::model::{ApiError, App, AppInput, FunctionInput, FunctionResource, Trigger, TriggerInput};
use serde::{Deserialize, Serialize};

use crate::store::{Contents, DatabaseId, FiredTick, RemovedNode, StoreError, UsedToken};

/// The form that is written, and the newest that is read.
pub const FORM: u32 = 1;
/// Longest line; a resource is smaller than the largest request of the API.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Why a catalog was not taken in. Nothing was changed, unless the database broke off at the very end.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The text cannot be read.
    #[error("the catalog cannot be read: {0}")]
    Input(io::Error),
    /// The text is no catalog.
    #[error("this is no exported catalog; make one with `kiln catalog export`")]
    Foreign,
    /// The text is of a newer form.
    #[error(
        "the catalog is in form {found}, this Kiln reads forms up to {FORM}; use the version that wrote it, or a newer one"
    )]
    Form {
        /// Its form.
        found: u32,
    },
    /// A line is no part of a catalog.
    #[error("line {number} cannot be used: {reason}; nothing was changed")]
    Line {
        /// Which one, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// The end is missing.
    #[error("the catalog is cut off after line {lines}; export it again. Nothing was changed")]
    CutOff {
        /// The last one.
        lines: usize,
    },
    /// The database has a catalog.
    #[error(
        "the database has apps already; nothing was changed. To remove them all and take in this catalog instead, add --replace"
    )]
    NotEmpty,
    /// The database failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    KilnCatalog(Head),
    App(App),
    Fn(FunctionResource),
    Trigger(Trigger),
    FiredTick(FiredTick),
    RemovedNode(RemovedNode),
    UsedToken(UsedToken),
    End(End),
}

#[derive(Serialize, Deserialize)]
struct Head {
    form: u32,
    kiln: String,
    database: DatabaseId,
    revision: u64,
}

#[derive(Serialize, Deserialize)]
struct End {
    /// Lines between the first and this one.
    lines: usize,
}

/// The text of a catalog.
///
/// # Errors
/// Those of `out`.
pub fn write(contents: &Contents, mut out: impl Write) -> io::Result<()> {
    let Contents { catalog, fired_ticks, removed_nodes, used_tokens } = contents;
    let head = Head {
        form: FORM,
        kiln: env!("CARGO_PKG_VERSION").to_owned(),
        database: catalog.database.clone(),
        revision: catalog.revision,
    };
    put(&mut out, &Line::KilnCatalog(head))?;
    let lines = catalog.apps.iter().cloned().map(Line::App);
    let lines = lines.chain(catalog.functions.iter().cloned().map(Line::Fn));
    let lines = lines.chain(catalog.triggers.iter().cloned().map(Line::Trigger));
    let lines = lines.chain(fired_ticks.iter().cloned().map(Line::FiredTick));
    let lines = lines.chain(removed_nodes.iter().cloned().map(Line::RemovedNode));
    let lines = lines.chain(used_tokens.iter().cloned().map(Line::UsedToken));
    let mut count = 0;
    for line in lines {
        put(&mut out, &line)?;
        count += 1;
    }
    put(&mut out, &Line::End(End { lines: count }))?;
    out.flush()
}

fn put(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// The catalog of a text, every resource checked by the rules of the API.
///
/// # Errors
/// The first thing that does not fit.
pub fn read(mut input: impl BufRead) -> Result<Contents, ImportError> {
    let mut reading = Reading::default();
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
        if read.map_err(ImportError::Input)? == 0 {
            return Err(match number {
                1 => ImportError::Foreign,
                _ => ImportError::CutOff { lines: number - 1 },
            });
        }
        if number == 1 {
            reading.begin(&text)?;
            continue;
        }
        if text.last() != Some(&b'\n') {
            return Err(ImportError::CutOff { lines: number - 1 });
        }
        let wrong = |reason| ImportError::Line { number, reason };
        let line = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        match line {
            Line::End(End { lines }) if lines == number - 2 => break,
            Line::End(_) => return Err(wrong("lines before it are missing".to_owned())),
            other => reading.take(other).map_err(wrong)?,
        }
    }
    Ok(reading.contents)
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    contents: Contents,
    apps: HashSet<AppId>,
    /// Their places in the contents.
    functions: HashMap<FunctionId, usize>,
}

impl Reading {
    fn begin(&mut self, text: &[u8]) -> Result<(), ImportError> {
        #[derive(Deserialize)]
        struct First {
            kiln_catalog: FirstHead,
        }
        // Of other forms no more is known.
        #[derive(Deserialize)]
        struct FirstHead {
            form: u32,
        }
        let First { kiln_catalog: FirstHead { form } } =
            serde_json::from_slice(text).map_err(|_| ImportError::Foreign)?;
        if form != FORM {
            return Err(ImportError::Form { found: form });
        }
        let Ok(Line::KilnCatalog(head)) = serde_json::from_slice(text) else {
            return Err(ImportError::Foreign);
        };
        self.contents.catalog.database = head.database;
        self.contents.catalog.revision = head.revision;
        Ok(())
    }

    fn take(&mut self, line: Line) -> Result<(), String> {
        let Contents { catalog, fired_ticks, removed_nodes, used_tokens } = &mut self.contents;
        match line {
            Line::App(app) => {
                follows_the_rules(app.update(&AppInput::default(), app.updated_at))?;
                if !self.apps.insert(app.id) {
                    return Err(format!("app {} comes twice", app.id));
                }
                catalog.apps.push(app);
            }
            Line::Fn(function) => {
                follows_the_rules(function.update(&FunctionInput::default(), function.updated_at))?;
                if !self.apps.contains(&function.app_id) {
                    return Err(format!("app {} is not before it", function.app_id));
                }
                if self.functions.insert(function.id, catalog.functions.len()).is_some() {
                    return Err(format!("fn {} comes twice", function.id));
                }
                catalog.functions.push(function);
            }
            Line::Trigger(trigger) => {
                let function = self.functions.get(&trigger.fn_id).map(|place| &catalog.functions[*place]);
                let function = function.ok_or_else(|| format!("fn {} is not before it", trigger.fn_id))?;
                follows_the_rules(trigger.update(&TriggerInput::default(), function, trigger.updated_at))?;
                catalog.triggers.push(trigger);
            }
            Line::FiredTick(tick) => fired_ticks.push(tick),
            Line::RemovedNode(node) => removed_nodes.push(node),
            Line::UsedToken(token) => used_tokens.push(token),
            Line::KilnCatalog(_) | Line::End(_) => return Err("it does not belong here".to_owned()),
        }
        Ok(())
    }
}

/// A change of nothing shows whether a resource is one that the API would have stored.
fn follows_the_rules<T>(changed: Result<T, ApiError>) -> Result<(), String> {
    changed.map(drop).map_err(|error| error.to_string())
}
