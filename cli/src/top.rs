//! `kiln top`: the fleet as it works.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use crossterm::event::{Event, KeyCode, KeyModifiers, poll, read};
use crossterm::{cursor, execute, queue, style, terminal};
use kiln_shared::model::FleetResource;

use crate::nodes::{HEADINGS, row};
use crate::session::Session;

/// `kiln top`
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: q or Ctrl-C ends it. Without a terminal, or with --output json, it prints one look and ends.

Examples:
  kiln top
  kiln top --every 5s
  kiln top --output json | jq .scale")]
pub struct TopArgs {
    /// Time between two looks
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration, default_value = "1s")]
    every: Duration,
}

/// Gives the terminal back as it was.
struct Screen;

impl Screen {
    fn open() -> Result<Self> {
        terminal::enable_raw_mode()?;
        execute!(stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody left to tell if that fails.
        drop(execute!(stdout(), cursor::Show, terminal::LeaveAlternateScreen));
        drop(terminal::disable_raw_mode());
    }
}

/// Shows the fleet until the user has seen enough.
pub async fn run(session: &Session, args: TopArgs) -> Result<()> {
    let client = session.client()?;
    let first = client.fleet().await?;
    if session.output.is_json() {
        return session.output.json(&first);
    }
    if !stdout().is_terminal() {
        return session.output.say(text(&first));
    }
    let _screen = Screen::open()?;
    let mut shown = Ok(first);
    loop {
        let page = match &shown {
            Ok(fleet) => text(fleet),
            Err(error) => format!("{error}\n\nTrying again."),
        };
        draw(&page)?;
        // Keys are looked at while nothing else is to do; the wait ends the look.
        let every = args.every;
        let wants_more = tokio::task::spawn_blocking(move || wants_more(every)).await??;
        if !wants_more {
            return Ok(());
        }
        shown = client.fleet().await;
    }
}

/// Waits for the next look; false if the user wants no more.
fn wants_more(every: Duration) -> Result<bool> {
    let until = std::time::Instant::now() + every;
    while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
        if !poll(left)? {
            return Ok(true);
        }
        match read()? {
            Event::Key(key) if key.code == KeyCode::Char('q') || key.code == KeyCode::Esc => {
                return Ok(false);
            }
            Event::Key(key)
                if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) =>
            {
                return Ok(false);
            }
            Event::Resize(..) => return Ok(true),
            _ => {}
        }
    }
    Ok(true)
}

fn draw(page: &str) -> Result<()> {
    let (width, height) = terminal::size()?;
    let mut out = stdout().lock();
    queue!(out, terminal::Clear(terminal::ClearType::All))?;
    for (line, row) in page.lines().zip(0..height) {
        let cut: String = line.chars().take(width.into()).collect();
        queue!(out, cursor::MoveTo(0, row), style::Print(cut))?;
    }
    out.flush()?;
    Ok(())
}

fn text(fleet: &FleetResource) -> String {
    let up = fleet.nodes.iter().filter(|node| node.state == "up").count();
    let sum = |of: fn(&kiln_shared::model::NodeResource) -> u32| fleet.nodes.iter().map(of).sum::<u32>();
    let mut text = format!(
        "{}: {} of {} nodes up, {} calls on nodes, {} waiting here, {} containers, {} of them idle, {} starting\n",
        fleet.balancer,
        up,
        fleet.nodes.len(),
        sum(|node| node.calls),
        fleet.waiting_calls,
        sum(|node| node.containers),
        sum(|node| node.idle),
        sum(|node| node.starting),
    );
    if let Some(scale) = &fleet.scale {
        let in_use = scale.utilization * 100.0;
        let line = format!(
            "nodes wanted: {}, there are {} ({}); in use: {in_use:.0} %\n",
            scale.desired_nodes, scale.nodes, scale.reason
        );
        text.push_str(&line);
    }
    text.push('\n');
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(HEADINGS);
    for node in &fleet.nodes {
        table.add_row(row(node));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    text + &table.to_string()
}
