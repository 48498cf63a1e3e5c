//! Firewall rules that keep function containers away from the host they run on.
//!
//! Owns one iptables chain per node, entered for packets that come in from the functions' bridge: on their way
//! to the host (`INPUT`) and through it (`DOCKER-USER`, or `FORWARD` where Docker made no such chain). Setting
//! it up again changes nothing. Answers of functions to the host, and name resolution, stay open.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Link-local addresses: the clouds' metadata services, `169.254.169.254` first of all.
const LINK_LOCAL: &str = "169.254.0.0/16";

/// Waits for the lock of other users of iptables, in seconds.
const LOCK_SECONDS: &str = "5";

/// Why the rules could not be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirewallError {
    #[error("cannot run {program}: {cause}")]
    Run { program: &'static str, cause: std::io::Error },
    #[error("{program} says: {words}")]
    Refused { program: &'static str, words: String },
}

/// The rules of one node.
#[derive(Debug)]
pub(super) struct Firewall {
    chain: String,
    bridge: String,
}

impl Firewall {
    /// The rules of the node that `tag` names, for its `bridge`; nothing is set yet.
    pub(super) fn new(tag: &str, bridge: &str) -> Self {
        Self { chain: format!("KILN-{tag}"), bridge: bridge.to_owned() }
    }

    /// Closes the host to what comes in from the bridge.
    pub(super) async fn close(&self) -> Result<(), FirewallError> {
        let resolvers = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
        self.load(&chain_rules(&self.chain, &resolvers)).await?;
        let through = self.through_hook().await;
        for hook in ["INPUT", through] {
            if self.hook("-C", hook).await.is_err() {
                self.hook("-I", hook).await?;
            }
        }
        Ok(())
    }

    /// Takes the rules away again, if there are any.
    pub(super) async fn open(&self) {
        if iptables(&["-L", &self.chain, "-n"]).await.is_err() {
            return;
        }
        for hook in ["INPUT", "DOCKER-USER", "FORWARD"] {
            // More than once only if somebody added it by hand.
            while self.hook("-D", hook).await.is_ok() {}
        }
        for step in ["-F", "-X"] {
            if let Err(error) = iptables(&[step, &self.chain]).await {
                tracing::warn!(chain = self.chain, %error, "cannot remove firewall rules");
            }
        }
    }

    /// Where forwarded packets are met before Docker's own rules accept them.
    async fn through_hook(&self) -> &'static str {
        if iptables(&["-L", "DOCKER-USER", "-n"]).await.is_ok() { "DOCKER-USER" } else { "FORWARD" }
    }

    async fn hook(&self, step: &str, hook: &str) -> Result<(), FirewallError> {
        iptables(&[step, hook, "-i", &self.bridge, "-j", &self.chain]).await
    }

    /// Sets the chain in one transaction.
    async fn load(&self, rules: &str) -> Result<(), FirewallError> {
        let program = "iptables-restore";
        let run = |cause| FirewallError::Run { program, cause };
        let mut child = Command::new(program)
            .args(["--noflush", "-w", LOCK_SECONDS])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(run)?;
        let mut stdin = child.stdin.take().expect("piped above");
        stdin.write_all(rules.as_bytes()).await.map_err(run)?;
        drop(stdin);
        judge(program, &child.wait_with_output().await.map_err(run)?)
    }
}

async fn iptables(arguments: &[&str]) -> Result<(), FirewallError> {
    let program = "iptables";
    let run = Command::new(program).args(["-w", LOCK_SECONDS]).args(arguments).kill_on_drop(true).output();
    judge(program, &run.await.map_err(|cause| FirewallError::Run { program, cause })?)
}

fn judge(program: &'static str, output: &Output) -> Result<(), FirewallError> {
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(FirewallError::Refused { program, words })
}

/// The chain as `iptables-restore` reads it; naming a chain empties it. `resolvers` is a `resolv.conf`: a name
/// server may be the host itself or a link-local address.
fn chain_rules(chain: &str, resolvers: &str) -> String {
    let mut rules = format!("*filter\n:{chain} - [0:0]\n");
    let mut rule = |text: &str| writeln!(rules, "-A {chain} {text}").expect("a string takes every write");
    rule("-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN");
    let servers = resolvers.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    for server in servers.filter_map(|address| address.trim().parse::<Ipv4Addr>().ok()) {
        if !server.is_loopback() {
            rule(&format!("-d {server} -p udp --dport 53 -j RETURN"));
            rule(&format!("-d {server} -p tcp --dport 53 -j RETURN"));
        }
    }
    rule(&format!("-d {LINK_LOCAL} -j REJECT"));
    rule("-m addrtype --dst-type LOCAL -j REJECT");
    rules.push_str("COMMIT\n");
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_name_servers_come_before_what_is_closed() {
        let resolvers = "search lan\nnameserver 127.0.0.53\nnameserver 169.254.169.253\nnameserver fe80::1\n";
        assert_eq!(
            chain_rules("KILN-x", resolvers),
            "*filter\n:KILN-x - [0:0]\n\
             -A KILN-x -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN\n\
             -A KILN-x -d 169.254.169.253 -p udp --dport 53 -j RETURN\n\
             -A KILN-x -d 169.254.169.253 -p tcp --dport 53 -j RETURN\n\
             -A KILN-x -d 169.254.0.0/16 -j REJECT\n\
             -A KILN-x -m addrtype --dst-type LOCAL -j REJECT\n\
             COMMIT\n"
        );
    }
}
