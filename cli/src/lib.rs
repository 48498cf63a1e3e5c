//! The command line `kiln`: Fn's verbs and nouns, and `kiln start`.
//!
//! One file per verb or noun; [`client`] speaks with the server, [`funcfile`] reads functions' files, [`build`] makes
//! images. Knows nothing of the inside of edge, API and agent; [`start`] puts them together by their public functions.

#![expect(
    clippy::missing_errors_doc,
    reason = "every error here is one sentence for a person, with its remedy in the text"
)]
#![expect(
    clippy::doc_markdown,
    reason = "doc comments of arguments are the help text, where back quotes would show"
)]

pub mod apps;
pub mod args;
pub mod build;
pub mod build_command;
pub mod bump;
pub mod ca;
pub mod calls;
pub mod catalog;
pub mod client;
pub mod completion;
pub mod config;
pub mod context;
pub mod contexts;
pub mod daemon;
pub mod deploy;
pub mod failure;
pub mod funcfile;
pub mod functions;
pub mod init;
pub mod invoke;
pub mod logs;
pub mod node_join;
pub mod node_token;
pub mod nodes;
pub mod nodes_warmth;
pub mod output;
pub mod push;
pub mod queue;
pub mod resources;
pub mod runtimes;
pub mod session;
pub mod single_node;
pub mod start;
pub mod stop;
pub mod top;
pub mod triggers;
pub mod version;
pub mod why;
pub mod yaml;

use std::process::ExitCode;

use anyhow::Result;

use args::{
    Ca, Calls, Catalog, Cli, Command, Create, Delete, Get, GlobalArgs, Inspect, List, Node, Queue, Unset,
    Update, Use,
};
use contexts::ContextStore;
use output::Output;
use session::Session;

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let output = Output::new(cli.global.output, cli.global.verbose);
    match cli.command {
        Command::Start(args) => daemon::start(&args, output)?,
        Command::Stop(args) => stop::run(output, &args)?,
        Command::Init(args) => init::run(output, args)?,
        Command::Bump(args) => bump::run(output, &args)?,
        Command::Completion(args) => completion::run(output, &args)?,
        Command::Ca(Ca::Init(args)) => ca::init(output, &args)?,
        Command::Ca(Ca::Issue(args)) => ca::issue(output, &args)?,
        Command::Ca(Ca::Show(args)) => ca::show(output, &args)?,
        Command::Catalog(Catalog::Export(args)) => catalog::export(&args)?,
        Command::Catalog(Catalog::Import(args)) => catalog::import(output, &args)?,
        Command::Node(Node::Token(args)) => node_token::run(output, &args)?,
        Command::Node(Node::Join(args)) => node_join::run(output, &args)?,
        Command::Create(Create::Context(args)) => {
            context::create(
                output,
                &ContextStore::of_user()?,
                &args,
                cli.global.api_url,
                cli.global.registry,
            )?;
        }
        Command::List(List::Contexts) => {
            context::list(output, &ContextStore::of_user()?, cli.global.context.as_deref())?;
        }
        Command::Inspect(Inspect::Context(args)) => {
            context::inspect(output, &ContextStore::of_user()?, &args, cli.global.context.as_deref())?;
        }
        Command::Update(Update::Context(args)) => {
            context::update(output, &ContextStore::of_user()?, &args, cli.global.context.as_deref())?;
        }
        Command::Delete(Delete::Context(args)) => context::delete(output, &ContextStore::of_user()?, &args)?,
        Command::Use(Use::Context(args)) => context::use_context(output, &ContextStore::of_user()?, &args)?,
        Command::Unset(Unset::Context) => context::unset(output, &ContextStore::of_user()?)?,
        command => with_server(&cli.global, output, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The commands that need to know a server or a registry.
fn with_server(global: &GlobalArgs, output: Output, command: Command) -> Result<()> {
    let session = &Session::new(global, output)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match command {
            Command::Build(args) => build_command::run(session, args).await,
            Command::Push(args) => push::run(session, args).await,
            Command::Deploy(args) => deploy::run(session, args).await,
            Command::Invoke(args) => invoke::run(session, args).await,
            Command::Create(Create::App(args)) => apps::create(session, args).await,
            Command::Create(Create::Function(args)) => functions::create(session, args).await,
            Command::Create(Create::Trigger(args)) => triggers::create(session, args).await,
            Command::List(List::Apps(args)) => apps::list(session, args).await,
            Command::List(List::Functions(args)) => functions::list(session, args).await,
            Command::List(List::Triggers(args)) => triggers::list(session, args).await,
            Command::List(List::Calls(args)) | Command::Calls(Calls::List(args)) => {
                calls::list(session, args).await
            }
            Command::List(List::Config(args)) => config::list(session, args).await,
            Command::Inspect(Inspect::App(args)) => apps::inspect(session, args).await,
            Command::Inspect(Inspect::Function(args)) => functions::inspect(session, args).await,
            Command::Inspect(Inspect::Trigger(args)) => triggers::inspect(session, args).await,
            Command::Update(Update::App(args)) => apps::update(session, args).await,
            Command::Update(Update::Function(args)) => functions::update(session, args).await,
            Command::Update(Update::Trigger(args)) => triggers::update(session, args).await,
            Command::Delete(Delete::App(args)) => apps::delete(session, args).await,
            Command::Delete(Delete::Function(args)) => functions::delete(session, args).await,
            Command::Delete(Delete::Trigger(args)) => triggers::delete(session, args).await,
            Command::Delete(Delete::Config(args)) | Command::Unset(Unset::Config(args)) => {
                config::unset(session, args).await
            }
            Command::Config(args) => config::set(session, args).await,
            Command::Get(Get::Config(args)) => config::get(session, args).await,
            Command::Get(Get::Call(args)) | Command::Calls(Calls::Get(args)) => {
                calls::get(session, args).await
            }
            Command::Get(Get::Logs(args)) => logs::get(session, args).await,
            Command::Logs(args) => logs::get(session, args.into_get()?).await,
            Command::Nodes(args) => nodes::list(session, args).await,
            Command::Node(Node::Inspect(args)) => nodes::inspect(session, args).await,
            Command::Node(Node::Drain(args)) => nodes::drain(session, args).await,
            Command::Node(Node::Undrain(args)) => nodes::undrain(session, args).await,
            Command::Node(Node::Prewarm(args)) => nodes_warmth::prewarm(session, args).await,
            Command::Node(Node::Evict(args)) => nodes_warmth::evict(session, args).await,
            Command::Node(Node::Remove(args)) => nodes::remove(session, args).await,
            Command::Queue(Queue::Status(args)) => queue::status(session, args).await,
            Command::Queue(Queue::List(args)) => queue::list(session, args).await,
            Command::Queue(Queue::Inspect(args)) => queue::inspect(session, args).await,
            Command::Queue(Queue::Cancel(args)) => queue::cancel(session, args).await,
            Command::Queue(Queue::Redrive(args)) => queue::redrive(session, args).await,
            Command::Top(args) => top::run(session, args).await,
            Command::Why(args) => why::run(session, args).await,
            Command::Version => version::run(session).await,
            Command::Start(_)
            | Command::Stop(_)
            | Command::Init(_)
            | Command::Bump(_)
            | Command::Completion(_)
            | Command::Ca(_)
            | Command::Catalog(_)
            | Command::Node(_)
            | Command::Use(_)
            | Command::Create(Create::Context(_))
            | Command::List(List::Contexts)
            | Command::Inspect(Inspect::Context(_))
            | Command::Update(Update::Context(_))
            | Command::Delete(Delete::Context(_))
            | Command::Unset(Unset::Context) => unreachable!("handled without a server"),
        }
    })
}
