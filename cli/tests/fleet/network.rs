//! Hosts of a test's own: a namespace each, joined by a bridge in one more, or an address each on loopback.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// Everything is named after this and the test's process.
const PREFIX: &str = "kf";

/// The network. Removed when it is dropped.
pub(crate) struct Network {
    name: String,
    subnet: u8,
    /// How many there are so far.
    hosts: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Namespaces,
    Loopback,
}

/// One host.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// None on loopback.
    namespace: Option<String>,
    pub(crate) address: Ipv4Addr,
}

impl Network {
    /// Hosts that share this machine's loopback interface, where all of 127.0.0.0/8 is local.
    pub(crate) fn loopback() -> Self {
        Self::named(Kind::Loopback)
    }

    /// Nothing but the names.
    fn named(kind: Kind) -> Self {
        let id = std::process::id();
        Self { name: format!("{PREFIX}{id}"), subnet: (id % 250) as u8, hosts: 0, kind }
    }

    /// A network with the test itself on it.
    pub(crate) fn new() -> Self {
        remove_dead();
        let network = Self::named(Kind::Namespaces);
        let switch = network.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        let own = network.name.clone();
        ip(&["link", "add", &own, "type", "veth", "peer", "name", "own", "netns", &switch]);
        ip(&["-n", &switch, "link", "set", "own", "master", "br0", "up"]);
        ip(&["addr", "add", &format!("10.231.{}.254/24", network.subnet), "dev", &own]);
        ip(&["link", "set", &own, "up"]);
        network
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// A further host.
    pub(crate) fn host(&mut self) -> Host {
        self.hosts += 1;
        let number = self.hosts;
        let net = if self.kind == Kind::Loopback { 127 } else { 10 };
        let address = Ipv4Addr::new(net, 231, self.subnet, u8::try_from(number).expect("few hosts"));
        if self.kind == Kind::Loopback {
            return Host { namespace: None, address };
        }
        let (namespace, switch, port) = (self.namespace(number), self.switch(), format!("port{number}"));
        ip(&["netns", "add", &namespace]);
        ip(&[
            "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        Host { namespace: Some(namespace), address }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.kind == Kind::Loopback {
            return;
        }
        for namespace in (1..=self.hosts).map(|number| self.namespace(number)).chain([self.switch()]) {
            // Its interfaces go with it; the rest is removed whatever happens.
            drop(Command::new("ip").args(["netns", "del", &namespace]).output());
        }
        drop(Command::new("ip").args(["link", "del", &self.name]).output());
    }
}

impl Host {
    /// A command that sees this host's network, and everything else of the machine. It ends with the test.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(namespace) = &self.namespace {
            command.arg("nsenter").arg(format!("--net=/run/netns/{namespace}"));
        }
        command.arg(program);
        command
    }

    /// What an agent must be told of where it is reached: on loopback its link comes from another address.
    pub(crate) fn advertised(&self, port: u16) -> Option<String> {
        self.namespace.is_none().then(|| format!("--advertise={}:{port}", self.address))
    }

    /// Lets no packet through between this host and another, without either being told.
    pub(crate) fn cut(&self, other: &Self) {
        self.filter("-I", other);
    }

    /// Takes [`Self::cut`] back.
    pub(crate) fn mend(&self, other: &Self) {
        self.filter("-D", other);
    }

    fn filter(&self, what: &str, other: &Self) {
        let address = other.address.to_string();
        for rule in [["INPUT", "-s"], ["OUTPUT", "-d"]] {
            let [chain, side] = rule;
            let status =
                self.command("iptables").args(["-w", what, chain, side, &address, "-j", "DROP"]).status();
            assert!(status.expect("iptables runs").success(), "iptables {what} {chain}");
        }
    }
}

/// Removes the networks of tests that were killed.
fn remove_dead() {
    for namespace in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = namespace.file_name().to_string_lossy().into_owned();
        let id = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(id, _)| id);
        if id.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            // Its interfaces go with it, also the one on this host. Another test may have come first.
            drop(Command::new("ip").args(["netns", "del", &name]).output());
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
