//! What a node has warm: containers started before the first call, and given up before their time.

use anyhow::Result;
use clap::Args;

use crate::calls::find_function;
use crate::session::Session;

/// `kiln node prewarm`
#[derive(Debug, Args)]
#[command(after_help = "\
The node starts containers while it has room that nobody uses; `kiln node inspect` shows them. They are removed when they have been
idle for the function's idle timeout, as others are. Functions of the format `default` have none to keep.

Example:
  kiln node prewarm node7 demo hello --count 4")]
pub struct PrewarmArgs {
    /// Name of the node
    node: String,
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    /// Containers that there should be, idle or busy
    #[arg(long, value_name = "CONTAINERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
}

/// `kiln node evict`
#[derive(Debug, Args)]
#[command(after_help = "\
Containers that serve a call stay; the next call starts another if there is none.

Example:
  kiln node evict node7 demo hello")]
pub struct EvictArgs {
    /// Name of the node
    node: String,
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
}

/// Has a node start containers.
pub async fn prewarm(session: &Session, args: PrewarmArgs) -> Result<()> {
    let function = find_function(session, &args.app, &args.function).await?;
    let node = session.client()?.prewarm(&args.node, &function, args.count).await?;
    let text = format!(
        "{} starts containers of {} up to {}; `kiln node inspect {}` shows them.",
        node.id, function.name, args.count, node.id
    );
    session.output.result(text, &node)
}

/// Has a node give up idle containers.
pub async fn evict(session: &Session, args: EvictArgs) -> Result<()> {
    let function = find_function(session, &args.app, &args.function).await?;
    let node = session.client()?.evict(&args.node, &function).await?;
    session.output.result(format!("{} gives up its idle containers of {}.", node.id, function.name), &node)
}
