//! The command line as clap sees it: verbs, nouns, and the options that hold for all of them.
//!
//! Verbs, nouns and their short forms are Fn's. Each verb's own arguments live in the file of that verb.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::funcfile::FuncFile;
use crate::{
    apps, build_command, bump, ca, calls, catalog, completion, config, context, deploy, functions, init,
    invoke, logs, node_join, node_token, nodes, nodes_warmth, push, queue, start, stop, top, triggers, why,
};

const EXAMPLES: &str = "\
Five minutes to a function:
  kiln start --detach                                  bring up Kiln on this machine
  kiln init --runtime rust --trigger http hello        make a function's project
  cd hello
  kiln deploy --app demo --create-app --local          build it and give it to Kiln
  echo Ada | kiln invoke demo hello                    call it
  curl http://localhost:8080/t/demo/hello              call it through its trigger
  kiln logs demo hello                                 what it wrote during its last call
  kiln stop

Environment:
  FN_API_URL    address of the server (default http://localhost:8080)
  FN_REGISTRY   registry or user that images are pushed to
  FN_CONTEXT    context to use instead of the current one
  FN_TOKEN      token sent to the server

`kiln help VERB` tells more about each verb.";

/// Functions on your own machines.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalArgs {
    /// Address of the server, without /v2
    #[arg(long, global = true, env = "FN_API_URL", value_name = "URL", hide_env_values = true)]
    pub api_url: Option<String>,
    /// Registry that images go to: a user of the default registry, or a host and path
    #[arg(long, global = true, env = "FN_REGISTRY", value_name = "REGISTRY", hide_env_values = true)]
    pub registry: Option<String>,
    /// Context to use instead of the current one
    #[arg(long, global = true, env = "FN_CONTEXT", value_name = "NAME", hide_env_values = true)]
    pub context: Option<String>,
    /// text for people, or json: one value for programs
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        hide_possible_values = true
    )]
    pub output: OutputFormat,
    /// Show everything that the tools underneath say
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up Kiln on this machine: edge, API and agent in one process
    #[command(visible_alias = "st")]
    Start(start::StartArgs),
    /// Stop the Kiln that runs on this machine
    Stop(stop::StopArgs),
    /// Make a function's project: its code and its func.yaml
    #[command(visible_alias = "in")]
    Init(init::InitArgs),
    /// Build a function's image
    #[command(visible_alias = "bu")]
    Build(build_command::BuildArgs),
    /// Raise the version in func.yaml
    #[command(visible_alias = "bm")]
    Bump(bump::BumpArgs),
    /// Push a function's image to its registry
    #[command(visible_alias = "p")]
    Push(push::PushArgs),
    /// Bump, build, push and update functions and their triggers
    #[command(visible_alias = "dp")]
    Deploy(deploy::DeployArgs),
    /// Call a function
    #[command(visible_alias = "iv")]
    Invoke(invoke::InvokeArgs),
    /// Make an app, function, trigger or context
    #[command(visible_alias = "c", subcommand)]
    Create(Create),
    /// List apps, functions, triggers, calls, config or contexts
    #[command(visible_alias = "ls", subcommand)]
    List(List),
    /// Show one app, function, trigger or context in full
    #[command(visible_alias = "i", subcommand)]
    Inspect(Inspect),
    /// Change an app, function, trigger or context
    #[command(visible_alias = "up", subcommand)]
    Update(Update),
    /// Remove an app, function, trigger, config or context
    #[command(visible_alias = "d", subcommand)]
    Delete(Delete),
    /// Set a config value of an app or function
    #[command(visible_alias = "cf", subcommand)]
    Config(config::Set),
    /// Show a config value, a call or a log
    #[command(visible_alias = "g", subcommand)]
    Get(Get),
    /// Remove a config value, or stop using a context
    #[command(visible_alias = "un", subcommand)]
    Unset(Unset),
    /// Choose the context to use
    #[command(visible_alias = "u", subcommand)]
    Use(Use),
    /// List calls that ended, or show one
    #[command(visible_alias = "cl", subcommand)]
    Calls(Calls),
    /// Look at the queue of detached calls; cancel calls, put dead ones back
    #[command(visible_alias = "q", subcommand)]
    Queue(Queue),
    /// Show what a function wrote during a call
    #[command(visible_alias = "log")]
    Logs(logs::LogsArgs),
    /// Make the fleet's certificate authority, show it, issue identities with it
    #[command(subcommand)]
    Ca(Ca),
    /// Take the whole catalog out of a database, or into another one
    #[command(subcommand)]
    Catalog(Catalog),
    /// List the nodes of the fleet
    Nodes(nodes::ListArgs),
    /// Let machines join the fleet; show, drain and take back its nodes
    #[command(subcommand)]
    Node(Node),
    /// Watch the fleet at work: nodes, load, containers, waiting calls
    Top(top::TopArgs),
    /// Tell why a call went where it went and where its time went, or where one would go now
    Why(why::WhyArgs),
    /// Show the versions of this program and of the server
    Version,
    /// Print a script that completes kiln's commands in a shell
    Completion(completion::CompletionArgs),
}

/// What `create` makes.
#[derive(Debug, Subcommand)]
pub enum Create {
    /// Make an app
    #[command(aliases = ["apps", "a"])]
    App(apps::CreateArgs),
    /// Make a function of an image
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(functions::CreateArgs),
    /// Make a trigger
    #[command(aliases = ["triggers", "trig", "trigs", "tr", "t"])]
    Trigger(triggers::CreateArgs),
    /// Make a context
    #[command(aliases = ["contexts", "ctx"])]
    Context(context::CreateArgs),
}

/// What `list` lists.
#[derive(Debug, Subcommand)]
pub enum List {
    /// List the apps
    #[command(aliases = ["app", "a"])]
    Apps(apps::ListArgs),
    /// List the functions of an app
    #[command(aliases = ["function", "func", "funcs", "fn", "fns", "f"])]
    Functions(functions::ListArgs),
    /// List the triggers of an app or function
    #[command(aliases = ["trigger", "trig", "trigs", "tr", "t"])]
    Triggers(triggers::ListArgs),
    /// List the calls of a function that ended
    #[command(aliases = ["call", "cl"])]
    Calls(calls::ListArgs),
    /// List the config of an app or function
    #[command(alias = "cf", subcommand)]
    Config(config::List),
    /// List the contexts
    #[command(aliases = ["context", "ctx"])]
    Contexts,
}

/// What `inspect` shows.
#[derive(Debug, Subcommand)]
pub enum Inspect {
    /// Show an app as JSON, or one of its properties
    #[command(aliases = ["apps", "a"])]
    App(apps::InspectArgs),
    /// Show a function as JSON, or one of its properties
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(functions::InspectArgs),
    /// Show a trigger as JSON, or one of its properties
    #[command(aliases = ["triggers", "trig", "trigs", "tr", "t"])]
    Trigger(triggers::InspectArgs),
    /// Show a context
    #[command(aliases = ["contexts", "ctx"])]
    Context(context::InspectArgs),
}

/// What `update` changes.
#[derive(Debug, Subcommand)]
pub enum Update {
    /// Change an app
    #[command(aliases = ["apps", "a"])]
    App(apps::UpdateArgs),
    /// Change a function
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(functions::UpdateArgs),
    /// Change a trigger
    #[command(aliases = ["triggers", "trig", "trigs", "tr", "t"])]
    Trigger(triggers::UpdateArgs),
    /// Change a value of the current context
    #[command(aliases = ["contexts", "ctx"])]
    Context(context::UpdateArgs),
}

/// What `delete` removes.
#[derive(Debug, Subcommand)]
pub enum Delete {
    /// Remove an app with its functions and triggers
    #[command(aliases = ["apps", "a"])]
    App(apps::DeleteArgs),
    /// Remove a function with its triggers
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(functions::DeleteArgs),
    /// Remove a trigger
    #[command(aliases = ["triggers", "trig", "trigs", "tr", "t"])]
    Trigger(triggers::DeleteArgs),
    /// Remove a config value of an app or function
    #[command(alias = "cf", subcommand)]
    Config(config::Unset),
    /// Remove a context
    #[command(aliases = ["contexts", "ctx"])]
    Context(context::DeleteArgs),
}

/// What `get` shows.
#[derive(Debug, Subcommand)]
pub enum Get {
    /// Show a config value of an app or function
    #[command(alias = "cf", subcommand)]
    Config(config::Get),
    /// Show a call that ended, or a detached one on its way
    #[command(aliases = ["calls", "cl"])]
    Call(calls::GetArgs),
    /// Show what a function wrote during a call
    #[command(aliases = ["log", "lg"])]
    Logs(logs::GetArgs),
}

/// What `unset` removes.
#[derive(Debug, Subcommand)]
pub enum Unset {
    /// Remove a config value of an app or function
    #[command(alias = "cf", subcommand)]
    Config(config::Unset),
    /// Go back to the default context
    #[command(aliases = ["contexts", "ctx"])]
    Context,
}

/// What `use` chooses.
#[derive(Debug, Subcommand)]
pub enum Use {
    /// Use a context from now on
    #[command(aliases = ["contexts", "ctx"])]
    Context(context::UseArgs),
}

/// What `calls` does.
#[derive(Debug, Subcommand)]
pub enum Calls {
    /// List the calls of a function that ended
    #[command(visible_alias = "ls")]
    List(calls::ListArgs),
    /// Show a call that ended, or a detached one on its way
    Get(calls::GetArgs),
}

/// What `queue` does.
#[derive(Debug, Subcommand)]
pub enum Queue {
    /// Show what waits, runs and failed for good, by function
    #[command(visible_alias = "st")]
    Status(queue::StatusArgs),
    /// List detached calls
    #[command(visible_alias = "ls")]
    List(queue::ListArgs),
    /// Show a detached call
    #[command(visible_alias = "i")]
    Inspect(queue::InspectArgs),
    /// Take a call that waits out of the queue
    Cancel(queue::CancelArgs),
    /// Queue calls again that failed for good
    Redrive(queue::RedriveArgs),
}

/// What `catalog` does.
#[derive(Debug, Subcommand)]
pub enum Catalog {
    /// Write apps, functions and triggers of a database as lines of JSON
    Export(catalog::ExportArgs),
    /// Take such lines into a database, of the same kind or another
    Import(catalog::ImportArgs),
}

/// What `ca` does.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make the fleet's certificate authority
    Init(ca::InitArgs),
    /// Issue an identity to a machine that does not join by itself
    Issue(ca::IssueArgs),
    /// Show the fleet's certificate authority
    Show(ca::ShowArgs),
}

/// What `node` does.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Show a node with its containers
    Inspect(nodes::InspectArgs),
    /// Take no more calls to a node, and empty it
    Drain(nodes::DrainArgs),
    /// Take calls to a node again
    Undrain(nodes::UndrainArgs),
    /// Start containers of a function on a node before it is called
    Prewarm(nodes_warmth::PrewarmArgs),
    /// Remove the idle containers of a function from a node
    Evict(nodes_warmth::EvictArgs),
    /// Remove a node from the fleet for good
    Remove(nodes::RemoveArgs),
    /// Make this machine a node of a fleet
    Join(node_join::JoinArgs),
    /// Print a token with which one machine joins the fleet
    Token(node_token::TokenArgs),
}

/// Which function's project to work on.
#[derive(Debug, Args)]
pub struct FolderArgs {
    /// Folder of the function
    #[arg(
        long = "dir",
        visible_alias = "working-dir",
        short = 'w',
        value_name = "FOLDER",
        default_value = "."
    )]
    folder: PathBuf,
}

impl FolderArgs {
    /// The function's file in the folder.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn function(&self) -> Result<FuncFile> {
        FuncFile::load(&self.folder)
    }
}

/// How much of a list to show.
#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// Show at most this many
    #[arg(short = 'n', long = "limit", value_name = "COUNT", default_value_t = 100)]
    pub items_max: usize,
    /// Go on after this place of an earlier list
    #[arg(long)]
    pub cursor: Option<String>,
}

impl From<PageArgs> for crate::client::Range {
    fn from(args: PageArgs) -> Self {
        Self { items_max: args.items_max, cursor: args.cursor }
    }
}

/// `NAME=VALUE`; the value may be empty and may hold more equal signs.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// A time such as `90s`, `1h 30m` or `30d`; a day has 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::Span>().ok();
    span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "write it as a number and a unit, such as 90s, 30m, 12h or 30d".to_owned())
}

/// `NAME=JSON`.
pub fn annotation(text: &str) -> Result<(String, Value), String> {
    let (name, value) = key_value(text).map_err(|_| "write it as NAME=JSON".to_owned())?;
    let value = serde_json::from_str(&value)
        .map_err(|_| format!("{value} is not JSON; quote texts twice, as in '{name}=\"text\"'"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_may_hold_equal_signs_and_may_be_empty() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        assert!(key_value("=b").is_err());
        assert!(key_value("A").is_err());
    }

    #[test]
    fn times_have_units_up_to_days() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_hours(30 * 24)));
        for text in ["", "1", "0s", "-1h", "1 month", "soon", "99999999999d"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn annotations_are_json() {
        assert_eq!(annotation("a/b=[1]"), Ok(("a/b".into(), serde_json::json!([1]))));
        assert!(annotation("a=text").unwrap_err().contains("is not JSON"));
    }
}
