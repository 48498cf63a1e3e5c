//! A network of its own that loses packets: made for one run, gone with it.

use std::process::Command;

use anyhow::{Context, Result};

/// What can lose packets here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The kernel's network emulator.
    Netem,
    /// A packet filter's random match, where the kernel has no emulator.
    Iptables,
}

impl Loss {
    /// The first that works in a namespace of its own; `None` if none does, or none may be made.
    pub fn available() -> Option<Self> {
        [Self::Netem, Self::Iptables].into_iter().find(|loss| {
            let tried = loss.namespace(1.0, "true").output();
            tried.is_ok_and(|tried| tried.status.success())
        })
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netem => "netem",
            Self::Iptables => "iptables",
        }
    }

    /// `program`, in a network namespace whose loopback loses so many of 100 packets. Packets are of the size that they
    /// have on Ethernet.
    pub fn namespace(self, percent: f64, program: &str) -> Command {
        let lose = match self {
            Self::Netem => format!("tc qdisc add dev lo root netem loss {percent}%"),
            Self::Iptables => {
                let share = percent / 100.0;
                format!("iptables -A INPUT -m statistic --mode random --probability {share} -j DROP")
            }
        };
        let script = format!("ip link set lo up mtu 1500 && {lose} && exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", &script, program]);
        command
    }

    /// Runs this very program there with these arguments, and returns what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn inside(self, percent: f64, arguments: &[String]) -> Result<String> {
        let program = std::env::current_exe()?;
        let mut command = self.namespace(percent, &program.to_string_lossy());
        let output = command.args(arguments).stderr(std::process::Stdio::inherit()).output();
        let output = output.context("cannot run unshare")?;
        anyhow::ensure!(output.status.success(), "the run with packet loss failed");
        Ok(String::from_utf8(output.stdout)?)
    }
}
