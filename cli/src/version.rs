//! `kiln version`: this program's and the server's.

use anyhow::Result;
use serde_json::json;

use crate::session::Session;

/// Shows the versions. A server that cannot be reached is no failure.
pub async fn run(session: &Session) -> Result<()> {
    let client = env!("CARGO_PKG_VERSION");
    let server = match session.client() {
        Ok(api) => api.server_version().await.ok(),
        Err(_) => None,
    };
    if session.output.is_json() {
        return session.output.json(&json!({ "client": client, "server": server }));
    }
    session.output.say(format_args!("Client version: {client}"))?;
    session.output.say(format_args!("Server version: {}", server.as_deref().unwrap_or("?")))
}
