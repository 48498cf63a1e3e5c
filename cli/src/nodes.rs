//! The nodes of a fleet: list them, show one, drain one, take it back, remove one.

use anyhow::Result;
use clap::Args;
use kiln_shared::model::NodeResource;

use crate::session::Session;

const NODES_EXAMPLES: &str = "\
What the balancer that is asked sees; each balancer hears the nodes for itself.

  up        takes calls                      draining  finishes its calls and takes no more
  suspect   silent, gets no calls            drained   draining, and empty
  down      silent for a minute: what was known of its containers is forgotten

Examples:
  kiln nodes
  kiln nodes --output json | jq -r '.[] | select(.state != \"up\") | .id'";

/// `kiln nodes`
#[derive(Debug, Args)]
#[command(after_help = NODES_EXAMPLES)]
pub struct ListArgs {}

/// `kiln node inspect`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln node inspect node7 --output json | jq .functions")]
pub struct InspectArgs {
    /// Name of the node
    node: String,
}

/// `kiln node drain`
#[derive(Debug, Args)]
#[command(after_help = "\
Calls that run end as they would; new ones go to other nodes, on all balancers. The node stays drained over restarts, until
`kiln node undrain`.

Examples:
  kiln node drain node7 --wait                         returns when the node is empty
  kiln node drain node7 && ssh node7 systemctl stop kiln-agent")]
pub struct DrainArgs {
    /// Name of the node
    node: String,
    /// Return when no call runs there and its containers are gone
    #[arg(long)]
    wait: bool,
    /// Longest wait, as in 30s or 10m
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration, default_value = "10m", requires = "wait")]
    timeout: std::time::Duration,
}

/// `kiln node undrain`
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// Name of the node
    node: String,
}

/// `kiln node remove`
#[derive(Debug, Args)]
#[command(after_help = "\
For a host that is given up or not to be trusted any more. Its links end within seconds on all balancers, it is not let in
again under this name, and its certificate is not renewed; what runs there is cut, so drain it first if you can. The host
can join again with a new token, under another name.

Example:
  kiln node drain node7 --wait && kiln node remove node7")]
pub struct RemoveArgs {
    /// Name of the node
    node: String,
}

/// Lists the nodes.
pub async fn list(session: &Session, _args: ListArgs) -> Result<()> {
    let nodes = session.client()?.fleet().await?.nodes;
    if nodes.is_empty() {
        session.note(
            "no node is linked; start kiln-agent on a host, with --balancer and a token of `kiln node token`",
        )?;
    }
    session.output.table(HEADINGS, nodes.iter().map(row), &nodes)
}

/// The columns of a list of nodes.
pub(crate) const HEADINGS: [&str; 9] =
    ["NODE", "STATE", "FOR", "CALLS", "CONTAINERS", "IDLE", "STARTING", "MEMORY FREE", "ADDRESS"];

pub(crate) fn row(node: &NodeResource) -> [std::borrow::Cow<'static, str>; 9] {
    let memory = match (node.memory_free_mib, node.memory_total_mib) {
        (Some(free), Some(total)) => format!("{free} of {total} MiB"),
        _ => String::new(),
    };
    let state = if node.share < 1.0 {
        format!("{} ({:.0} %)", node.state, node.share * 100.0)
    } else {
        node.state.clone()
    };
    [
        node.id.clone().into(),
        state.into(),
        age(node.state_seconds).into(),
        node.calls.to_string().into(),
        node.containers.to_string().into(),
        node.idle.to_string().into(),
        node.starting.to_string().into(),
        memory.into(),
        node.address.clone().into(),
    ]
}

/// A time for people: the largest unit that fits.
pub(crate) fn age(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m", whole / 60),
        3600..86_400 => format!("{}h", whole / 3600),
        _ => format!("{}d", whole / 86_400),
    }
}

/// Shows a node.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<()> {
    let node = session.client()?.node(&args.node).await?;
    if session.output.is_json() {
        return session.output.json(&node);
    }
    let lines = [
        ("Node", node.id.clone()),
        ("State", format!("{} for {}: {}", node.state, age(node.state_seconds), node.reason)),
        ("Heard", node.heard_seconds_ago.map_or("never".to_owned(), |ago| format!("{ago:.1} s ago"))),
        ("Address", node.address.clone()),
        ("Zone", node.zone.clone().unwrap_or_default()),
        ("Weight", node.weight.to_string()),
        ("Calls", format!("{}, {} of them of this balancer", node.calls, node.own_calls)),
        (
            "Memory",
            match (node.memory_free_mib, node.memory_total_mib) {
                (Some(free), Some(total)) => format!("{free} of {total} MiB free"),
                _ => "not reported yet".to_owned(),
            },
        ),
        ("Images", node.images.join(", ")),
    ];
    for (name, value) in lines {
        if !value.is_empty() {
            session.output.say(format!("{name:<10}{value}"))?;
        }
    }
    if node.functions.is_empty() {
        return session.output.say("No containers.");
    }
    let rows = node.functions.iter().map(|function| {
        [
            function.name.clone().unwrap_or_else(|| function.fn_id.to_string()).into(),
            function.revision.clone().into(),
            function.containers.to_string().into(),
            function.idle.to_string().into(),
            function.starting.to_string().into(),
            function.calls.to_string().into(),
        ]
    });
    session.output.say("")?;
    session.output.table(
        ["FUNCTION", "REVISION", "CONTAINERS", "IDLE", "STARTING", "CALLS"],
        rows,
        &node.functions,
    )
}

/// Drains a node.
pub async fn drain(session: &Session, args: DrainArgs) -> Result<()> {
    let client = session.client()?;
    let mut node = client.drain_node(&args.node).await?;
    if args.wait {
        let begun = std::time::Instant::now();
        let step = session.output.step(format!("Draining {}", args.node));
        while node.state != "drained" {
            if begun.elapsed() > args.timeout {
                let text =
                    format!("{} still has {} calls and {} containers", node.id, node.calls, node.containers);
                return Err(crate::failure::Failure::new(text).hint("wait longer with --timeout").into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            node = client.node(&args.node).await?;
        }
        drop(step);
        return session.output.result(format!("{} is drained: no calls, no containers.", node.id), &node);
    }
    session.output.result(
        format!(
            "{} drains; `kiln nodes` shows when it is drained, `kiln node undrain` takes it back.",
            node.id
        ),
        &node,
    )
}

/// Takes a node back.
pub async fn undrain(session: &Session, args: UndrainArgs) -> Result<()> {
    let node = session.client()?.undrain_node(&args.node).await?;
    session.output.result(format!("{} takes calls again.", node.id), &node)
}

/// Removes a node.
pub async fn remove(session: &Session, args: RemoveArgs) -> Result<()> {
    session.client()?.remove_node(&args.node).await?;
    session.output.result(
        format!("{} is removed: no balancer lets it in under this name.", args.node),
        &serde_json::json!({ "id": args.node }),
    )
}
