//! Calls: list those that ended, show one.

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;

use crate::args::PageArgs;
use crate::resources::{Call, Function};
use crate::session::Session;

/// `kiln list calls`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln list calls demo hello -n 10 --from-time 2026-01-31T09:00:00Z")]
pub struct ListArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    #[command(flatten)]
    page: PageArgs,
    /// Only calls made after this time (RFC 3339, such as 2026-01-31T09:00:00Z)
    #[arg(long, value_name = "TIME")]
    from_time: Option<Timestamp>,
    /// Only calls made before this time
    #[arg(long, value_name = "TIME")]
    to_time: Option<Timestamp>,
}

/// `kiln get call`
#[derive(Debug, Args)]
#[command(after_help = "\
A call that ended is success, error or timeout. One that was detached is shown from the moment in which it was accepted: queued, delayed
or running, then as it ended, or cancelled, or dead if all its attempts failed. `kiln queue inspect` tells more of it.

Example:
  kiln get call demo hello 01M857XH5W1VF3216WYJPN885B")]
pub struct GetArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    /// The call's id, as `kiln invoke --display-call-id` and `--detach` show it
    call_id: String,
}

/// Finds a function by its names.
pub async fn find_function(session: &Session, app: &str, function: &str) -> Result<Function> {
    let client = session.client()?;
    Ok(client.function(&client.app(app).await?, function).await?)
}

/// Lists the calls of a function.
pub async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let function = find_function(session, &args.app, &args.function).await?;
    let (from_time, to_time) =
        (args.from_time.map(Timestamp::as_second), args.to_time.map(Timestamp::as_second));
    let calls = session.client()?.calls(&function, from_time, to_time, args.page.into()).await?;
    if calls.is_empty() {
        session.note(&format!("no calls found for function: {}", function.name))?;
    }
    let rows = calls.iter().map(|call| {
        [
            call.id.clone().into(),
            call.status.clone().into(),
            call.created_at.clone().into(),
            duration(call).into(),
            call.error.clone().into(),
        ]
    });
    session.output.table(["ID", "STATUS", "CREATED AT", "TOOK", "ERROR"], rows, &calls)
}

/// Shows a call.
pub async fn get(session: &Session, args: GetArgs) -> Result<()> {
    let function = find_function(session, &args.app, &args.function).await?;
    let call = session.client()?.call(&function, &args.call_id).await?;
    if session.output.is_json() {
        return session.output.json(&call);
    }
    let lines = [
        ("ID", &call.id),
        ("Fn Id", &function.id),
        ("Created At", &call.created_at),
        ("Started At", &call.started_at),
        ("Completed At", &call.completed_at),
        ("Took", &duration(&call)),
        ("Status", &call.status),
        ("Error reason", &call.error),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        session.output.say(format_args!("{name}: {value}"))?;
    }
    Ok(())
}

/// From its start to its end, in milliseconds or seconds; nothing if it never started.
fn duration(call: &Call) -> String {
    let (Ok(started), Ok(completed)) =
        (call.started_at.parse::<Timestamp>(), call.completed_at.parse::<Timestamp>())
    else {
        return String::new();
    };
    let milliseconds = completed.as_millisecond() - started.as_millisecond();
    // Fn writes the year 1 for a time that never was.
    if started.as_second() <= 0 || milliseconds < 0 {
        String::new()
    } else if milliseconds < 10_000 {
        format!("{milliseconds} ms")
    } else {
        format!("{:.1} s", milliseconds as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(started_at: &str, completed_at: &str) -> Call {
        Call { started_at: started_at.into(), completed_at: completed_at.into(), ..Call::default() }
    }

    #[test]
    fn a_call_that_never_started_took_no_time() {
        assert_eq!(duration(&call("0001-01-01T00:00:00.000Z", "2026-01-31T09:00:00.250Z")), "");
        assert_eq!(duration(&call("", "")), "");
    }

    #[test]
    fn durations_are_rounded_for_people() {
        assert_eq!(duration(&call("2026-01-31T09:00:00.000Z", "2026-01-31T09:00:00.250Z")), "250 ms");
        assert_eq!(duration(&call("2026-01-31T09:00:00.000Z", "2026-01-31T09:01:00.250Z")), "60.2 s");
    }
}
