//! `kiln why`: how a call came to its node and where its time went, or where a call would go now.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kiln_shared::model::{CallWhy, FunctionWhy};
use kiln_shared::story::{Candidate, NodeTimes, Placement, Reason};
use reqwest::StatusCode;

use crate::calls::find_function;
use crate::client::ApiError;
use crate::failure::Failure;
use crate::session::Session;

/// `kiln why`
#[derive(Debug, Args)]
#[command(after_help = "\
A call's id is in the header Fn-Call-Id of its answer, in `kiln list calls` and in `kiln invoke --display-call-id`. Its story is kept
with its record, a moment after it has ended.

  warm_home, warm_spill     a container of the function was free on its home node, or on another one
  soon_home, soon_spill     a container was being started there, and no call waited for it
  room_home, room_spill     there was room for another container
  queue_home, queue_spill   no room anywhere; few calls waited there

  balancer   from the call's arrival to the moment in which a node was given it; of it waiting for a place on a node
  queue      waiting on the node for a free container
  start      waiting for the container that was started for it
  run        the function, to the head of its answer
  answer     the rest of its answer

Examples:
  kiln why 01KB3S6Y7XNG8G00RZJ0000001
  kiln why 01KB3S6Y7XNG8G00RZJ0000001 --output json | jq .story.times
  kiln why --function demo/hello                       where a call would go now, and what speaks against each node")]
pub struct WhyArgs {
    /// The call's id
    #[arg(required_unless_present = "function", conflicts_with = "function")]
    call_id: Option<String>,
    /// Tell where a call of this function would go now
    #[arg(long, value_name = "APP/FUNCTION", value_parser = app_and_function)]
    function: Option<(String, String)>,
}

pub(crate) fn app_and_function(text: &str) -> Result<(String, String), String> {
    let names = text.split_once('/').filter(|(app, function)| !app.is_empty() && !function.is_empty());
    let (app, function) = names.ok_or("write it as APP/FUNCTION")?;
    Ok((app.to_owned(), function.to_owned()))
}

/// Tells why.
pub async fn run(session: &Session, args: WhyArgs) -> Result<()> {
    let client = session.client()?;
    if let Some((app, function)) = args.function {
        let function = find_function(session, &app, &function).await?;
        return of_function(session, &client.function_why(&function.id).await?);
    }
    let call_id = args.call_id.unwrap_or_default();
    match client.call_why(&call_id).await {
        Ok(why) => of_call(session, &why),
        Err(ApiError::Refused { status: StatusCode::NOT_FOUND, message }) => {
            let hint =
                "calls are recorded a moment after they end; of many that are refused at once only some are";
            Err(Failure::new(format!("{message}: {call_id}")).hint(hint).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn of_call(session: &Session, why: &CallWhy) -> Result<()> {
    let output = session.output;
    if output.is_json() {
        return output.json(why);
    }
    let CallWhy { call, function, story } = why;
    let heat = match (story.times, call.cold) {
        (None, _) => "",
        (Some(_), true) => ", cold",
        (Some(_), false) => ", warm",
    };
    output.say(format_args!("{:<10}{} of {function}: {}{heat}", "Call", call.id, call.status.as_str()))?;
    if let Some(error) = &call.error {
        output.say(format_args!("{:<10}{error}", "Error"))?;
    }
    let node = match (&story.node, &story.times) {
        (Some(node), Some(_)) => node.to_string(),
        (Some(node), None) => format!("{node}, which was lost with it"),
        (None, _) => "none took it".to_owned(),
    };
    output.say(format_args!("{:<10}{node}", "Node"))?;
    let Some(placement) = &story.placement else {
        return output.say(format_args!("{:<10}its balancer did not tell", "Reason"));
    };
    if let Some(reason) = placement.reason {
        output.say(format_args!("{:<10}{}", "Reason", in_words(reason)))?;
    }
    output.say(format_args!("{:<10}{}", "Balancer", at_balancer(placement)))?;
    output.say("")?;
    output.table(["STAGE", "TOOK"], stages(placement, story.times), &why.story)?;
    if !placement.refused.is_empty() {
        output.say("")?;
        output.table(["REFUSED BY", "CHOSEN FOR", "CALLS", "BECAUSE"], refusals(placement), &why.story)?;
    }
    show_candidates(session, &story.candidates)
}

fn at_balancer(placement: &Placement) -> String {
    let Placement { balancer, asked, calls, tries, waits, .. } = placement;
    let mut parts = vec![balancer.to_string()];
    if *tries > 0 {
        parts.push(format!("looked at {asked} {}", plural(*asked, "node")));
        parts.push(format!("the chosen one had {calls} {}", plural(*calls, "call")));
    }
    if *tries > 1 {
        parts.push(format!("{tries} tries"));
    }
    if *waits > 0 {
        parts.push(format!("{waits} {}", plural(*waits, "wait")));
    }
    parts.join(", ")
}

fn plural(count: u32, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

/// Stages and their times, the first one's part in them indented.
fn stages(placement: &Placement, times: Option<NodeTimes>) -> Vec<[Cow<'static, str>; 2]> {
    let mut rows = vec![["balancer".into(), took(placement.before)]];
    if placement.waits > 0 {
        rows.push(["  waiting".into(), took(placement.waited)]);
    }
    if let Some(NodeTimes { queue, start, run, whole }) = times {
        rows.extend([
            ["queue".into(), took(queue)],
            ["start".into(), took(start)],
            ["run".into(), took(run)],
            ["answer".into(), took(whole.saturating_sub(queue + start + run))],
        ]);
    }
    let whole = times.map_or(Duration::ZERO, |times| times.whole);
    rows.push(["total".into(), took(placement.before + whole)]);
    rows
}

fn refusals(placement: &Placement) -> impl Iterator<Item = [Cow<'static, str>; 4]> {
    placement.refused.iter().map(|refused| {
        [
            refused.node.to_string().into(),
            refused.reason.as_str().into(),
            refused.calls.to_string().into(),
            refused.refusal.to_string().into(),
        ]
    })
}

/// A time for people, to the microsecond where that matters.
fn took(time: Duration) -> Cow<'static, str> {
    let millis = time.as_secs_f64() * 1000.0;
    match millis {
        ..100.0 => format!("{millis:.3} ms"),
        ..10_000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
    .into()
}

fn in_words(reason: Reason) -> String {
    let words = match reason {
        Reason::WarmHome => "a free container on the function's home node",
        Reason::WarmSpill => "a free container on a node that is not the function's home",
        Reason::SoonHome => "a container that was being started on the function's home node",
        Reason::SoonSpill => "a container that was being started on a node that is not the function's home",
        Reason::RoomHome => "room for a container on the function's home node",
        Reason::RoomSpill => "room for a container on a node that is not the function's home",
        Reason::QueueHome => "no room anywhere, and a short queue on the function's home node",
        Reason::QueueSpill => "no room anywhere, and a short queue on a node that is not the function's home",
    };
    format!("{}: {words}", reason.as_str())
}

fn of_function(session: &Session, why: &FunctionWhy) -> Result<()> {
    let output = session.output;
    if output.is_json() {
        return output.json(why);
    }
    let calls = match why.calls_max {
        Some(calls_max) => format!("{} of at most {calls_max}", why.calls),
        None => why.calls.to_string(),
    };
    let goes = match (&why.node, why.reason, &why.no_node) {
        (Some(node), Some(reason), _) => format!("{node}, {}", in_words(reason)),
        (.., Some(no_node)) => format!("nowhere: {no_node}"),
        _ => "nowhere".to_owned(),
    };
    let waits = match why.waits_for.as_deref() {
        Some("concurrency") => "as many calls run as its limit lets; one that comes now waits for its turn",
        Some("full") => "a call that comes now waits for a place",
        Some("no_node") => "a call that comes now waits for a node to come back",
        _ => "",
    };
    let revision = format!("{}, {} MiB a container", why.revision, why.memory_mib);
    let lines = [
        ("Function", why.function.as_str()),
        ("Revision", &revision),
        ("Calls", &calls),
        ("Goes to", &goes),
        ("Waits", waits),
        ("Balancer", &why.balancer),
    ];
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.say(format_args!("{name:<10}{value}"))?;
    }
    show_candidates(session, &why.candidates)?;
    let hidden = (why.nodes as usize).saturating_sub(why.candidates.len());
    if hidden > 0 { output.say(format_args!("\n{hidden} nodes more.")) } else { Ok(()) }
}

fn show_candidates(session: &Session, candidates: &[Candidate]) -> Result<()> {
    if candidates.is_empty() {
        return Ok(());
    }
    let rows = candidates.iter().map(|candidate| {
        let name = if candidate.is_chosen { "* " } else { "" };
        [
            candidate.rank.to_string().into(),
            format!("{name}{}", candidate.node).into(),
            candidate.state.clone(),
            format!("{} of {}", candidate.calls, candidate.calls_max).into(),
            candidate.idle.to_string().into(),
            candidate.starting.to_string().into(),
            candidate.queued.to_string().into(),
            format!("{} MiB", candidate.memory_free_mib).into(),
            if candidate.has_image { "yes" } else { "no" }.into(),
            candidate.offer.map_or("", Reason::as_str).into(),
            candidate.against.join("; ").into(),
        ]
    });
    session.output.say("")?;
    session.output.table(
        [
            "RANK",
            "NODE",
            "STATE",
            "CALLS",
            "IDLE",
            "STARTING",
            "QUEUED",
            "MEMORY FREE",
            "IMAGE",
            "OFFERS",
            "AGAINST IT",
        ],
        rows,
        &candidates,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact_where_they_are_short() {
        let times = [0, 1, 99_999, 100_000, 9_999_000, 30_000_000].map(Duration::from_micros);
        assert_eq!(times.map(took), ["0.000 ms", "0.001 ms", "99.999 ms", "100 ms", "9999 ms", "30.0 s"]);
    }

    #[test]
    fn a_function_is_named_with_its_app() {
        let names = |app: &str, function: &str| Ok((app.to_owned(), function.to_owned()));
        assert_eq!(app_and_function("demo/hello"), names("demo", "hello"));
        assert_eq!(app_and_function("demo/a/b"), names("demo", "a/b"));
        for wrong in ["demo", "/hello", "demo/", ""] {
            assert!(app_and_function(wrong).is_err(), "{wrong}");
        }
    }
}
