//! Hosts on a network of the test's own: a namespace each, joined by a bridge in one more.

use std::net::Ipv4Addr;
use std::process::Command;

/// Everything is named after this and the test's process.
const PREFIX: &str = "kf";

/// The network. Removed when it is dropped.
pub(crate) struct Network {
    name: String,
    subnet: u8,
    hosts: Vec<String>,
}

/// One host.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    namespace: String,
    pub(crate) address: Ipv4Addr,
}

impl Network {
    /// A network with the test itself on it.
    pub(crate) fn new() -> Self {
        let id = std::process::id();
        let name = format!("{PREFIX}{id}");
        let subnet = (id % 250) as u8;
        let network = Self { name, subnet, hosts: Vec::new() };
        let switch = network.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        let own = network.name.clone();
        ip(&["link", "add", &own, "type", "veth", "peer", "name", "own", "netns", &switch]);
        ip(&["-n", &switch, "link", "set", "own", "master", "br0", "up"]);
        ip(&["addr", "add", &format!("10.231.{subnet}.254/24"), "dev", &own]);
        ip(&["link", "set", &own, "up"]);
        network
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    /// A further host.
    pub(crate) fn host(&mut self) -> Host {
        let number = self.hosts.len() + 1;
        let namespace = format!("{}-{number}", self.name);
        let (switch, port) = (self.switch(), format!("port{number}"));
        let address = Ipv4Addr::new(10, 231, self.subnet, u8::try_from(number).expect("few hosts"));
        ip(&["netns", "add", &namespace]);
        self.hosts.push(namespace.clone());
        ip(&[
            "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        Host { namespace, address }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().chain([&self.switch()]) {
            // Its interfaces go with it; the rest is removed whatever happens.
            drop(Command::new("ip").args(["netns", "del", namespace]).output());
        }
        drop(Command::new("ip").args(["link", "del", &self.name]).output());
    }
}

impl Host {
    /// A command that sees this host's network, and everything else of the machine. It ends with the test.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command
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

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
