//! A real rsyslog of a test's own, in a folder of its own, that ends with the test.
//!
//! It takes messages over UDP, TCP and TLS, each on a port of its own, and from a datagram socket, and writes each as a line
//! of JSON.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{ended, send};
use crate::{Port, until};

/// How messages are taken and written; capitals stand for what differs.
const SETTINGS: &str = r#"
global(workDirectory="HOME" maxMessageSize="64k"
    defaultNetstreamDriverCAFile="HOME/ca" defaultNetstreamDriverCertFile="HOME/certificate"
    defaultNetstreamDriverKeyFile="HOME/key")
module(load="imudp")
module(load="imptcp")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
module(load="imuxsock" sysSock.use="off")
input(type="imudp" address="127.0.0.1" port="UDP")
input(type="imptcp" address="127.0.0.1" port="TCP")
input(type="imuxsock" socket="HOME/socket" useSpecialParser="off" rateLimit.interval="0")
TLS
template(name="json" type="list" option.jsonf="on") {
    property(outname="input" name="inputname" format="jsonf")
    property(outname="priority" name="pri" format="jsonf")
    property(outname="version" name="protocol-version" format="jsonf")
    property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="app" name="app-name" format="jsonf")
    property(outname="process" name="procid" format="jsonf")
    property(outname="kind" name="msgid" format="jsonf")
    property(outname="data" name="structured-data" format="jsonf")
    property(outname="text" name="msg" format="jsonf")
}
action(type="omfile" file="HOME/messages" template="json")
"#;

/// A message as rsyslog understood it: the members are the names in the settings above.
pub type Message = Value;

/// A server. Killed when dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    udp: Port,
    tcp: Port,
    tls: Port,
    has_tls: bool,
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    /// Starts one without TLS.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts one with TLS besides, with a certificate, its key and its authority as PEM.
    pub async fn start_with_tls(certificate: &str, key: &str, ca: &str) -> Self {
        Self::start_with(Some([("certificate", certificate), ("key", key), ("ca", ca)])).await
    }

    async fn start_with(tls: Option<[(&str, &str); 3]>) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        for (name, pem) in tls.iter().flatten() {
            fs::write(home.path().join(name), pem).expect("written");
        }
        let ports = [Port::take(), Port::take(), Port::take()];
        let [udp, tcp, tls_port] = ports;
        let mut server = Self { udp, tcp, tls: tls_port, has_tls: tls.is_some(), home, process: None };
        server.begin().await;
        server
    }

    /// URL for UDP.
    pub fn udp(&self) -> String {
        format!("udp://127.0.0.1:{}", self.udp.number())
    }

    /// URL for TCP.
    pub fn tcp(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.tcp.number())
    }

    /// URL for TLS.
    pub fn tls(&self) -> String {
        format!("tcp+tls://127.0.0.1:{}", self.tls.number())
    }

    /// URL of the datagram socket.
    pub fn unixgram(&self) -> String {
        format!("unixgram://{}", self.home.path().join("socket").display())
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], on the same ports. What it has written stays.
    pub async fn begin(&mut self) {
        let home = self.home.path();
        let path = home.display().to_string();
        let tls = r#"input(type="imtcp" address="127.0.0.1" port="TLS")"#;
        let settings = SETTINGS
            .replace("\nTLS\n", if self.has_tls { tls } else { "" })
            .replace("HOME", &path)
            .replace("UDP", &self.udp.number().to_string())
            .replace("\"TCP\"", &format!("\"{}\"", self.tcp.number()))
            .replace("\"TLS\"", &format!("\"{}\"", self.tls.number()));
        fs::write(home.join("settings"), settings).expect("written");
        let log = File::create(home.join("log")).expect("a log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "rsyslogd", "-n"]);
        command.arg("-f").arg(home.join("settings")).arg("-i").arg(home.join("pid"));
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log).process_group(0);
        self.process = Some(command.spawn().expect("rsyslogd is installed"));
        let ports = if self.has_tls { vec![&self.tcp, &self.tls] } else { vec![&self.tcp] };
        until("rsyslog takes connections", async || {
            let takes = |port: &&Port| TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).is_ok();
            ports.iter().all(takes).then_some(())
        })
        .await;
    }

    /// Ends the server as an operator does.
    pub fn stop(&mut self) {
        let process = self.process.take().expect("it runs");
        send(process.id(), Signal::SIGTERM);
        ended(process);
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// Stops it where it is: connections stay and nobody reads.
    pub fn freeze(&self) {
        send(self.process.as_ref().expect("it runs").id(), Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        send(self.process.as_ref().expect("it runs").id(), Signal::SIGCONT);
    }

    /// What it has written, in its order; the last line may be half a one and is left out then.
    pub fn messages(&self) -> Vec<Message> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The file that it writes.
    pub fn file(&self) -> PathBuf {
        self.home.path().join("messages")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
