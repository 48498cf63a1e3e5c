//! What a function may do inside its container (`spec/container-contract.md`, A7).

use kiln_agent::container::{Driver, Transport};
use tokio::io::AsyncWriteExt;

use crate::support::{docker, image, plan, spec};
use crate::{ask, node, node_with};

#[tokio::test]
async fn a_function_has_no_privileges_and_writes_only_to_tmp() {
    let node = node().await;
    let container = node.start("phony").await;
    let identity = ask(&container, "identity").await;
    assert!(identity.starts_with("uid=1000 gid=1000 "), "{identity}");
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(identity.contains(line), "{identity}");
    }
    for path in ["/x", "/etc/x", "/function"] {
        assert!(ask(&container, &format!("write {path}")).await.contains("Read-only"), "{path}");
    }
    for path in ["/tmp/x", "/tmp/iofs/x"] {
        assert_eq!(ask(&container, &format!("write {path}")).await, "ok", "{path}");
    }
    node.close_with([container]).await;
}

#[tokio::test]
async fn processes_and_files_are_limited() {
    let node = node().await;
    let container = node.start("phony").await;
    // Of the 50: init, the function, and the thread that serves this connection.
    let threads: usize = ask(&container, "threads 60").await.parse().unwrap();
    assert!((40..50).contains(&threads), "{threads}");
    let files: usize = ask(&container, "files 400").await.parse().unwrap();
    assert!((330..350).contains(&files), "{files}");
    node.close_with([container]).await;
}

#[tokio::test]
async fn memory_cpu_and_tmp_are_as_the_function_asks() {
    let node = node().await;
    let mut spec = spec(&image("function"), "phony");
    spec.cpu_millis = Some(250);
    spec.tmpfs_mib = Some(3);
    let container = node.driver.start(plan(spec, Transport::Socket)).await.unwrap();
    let format = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpuPeriod}}";
    let limits = docker(&["inspect", "--format", format, &container.name]);
    assert_eq!(limits, "67108864 67108864 25000 100000");
    let mounts = ask(&container, "read /proc/mounts").await;
    let tmp = mounts.lines().find(|line| line.contains(" /tmp tmpfs ")).unwrap();
    assert!(tmp.contains("size=3072k") && tmp.contains("nosuid") && tmp.contains("nodev"), "{tmp}");
    assert!(!tmp.contains("noexec"), "{tmp}");
    node.close_with([container]).await;
}

#[tokio::test]
async fn the_socket_directory_cannot_fill_the_node() {
    let node = node_with(|config| config.iofs_tmpfs_bytes = Some(64 << 10)).await;
    let container = node.start("phony").await;
    let mounts = ask(&container, "read /proc/mounts").await;
    let iofs = mounts.lines().find(|line| line.contains(" /tmp/iofs tmpfs ")).expect("a tmpfs of its own");
    for option in ["size=64k", "nr_inodes=64", "nosuid", "nodev", "noexec"] {
        assert!(iofs.contains(option), "{iofs}");
    }
    node.close_with([container]).await;
}

#[tokio::test]
async fn a_2018_image_keeps_its_user_and_a_writable_root_and_nothing_else() {
    let node = node().await;
    for (name, user) in [("function", "uid=0 gid=0 "), ("user", "uid=4242 gid=4242 ")] {
        let mut container = node.start_pipes(&image(name), "lines").await;
        let mut output = container.output.take().unwrap();
        let mut stdin = container.stdin.take().unwrap();
        stdin.write_all(b"identity\n").await.unwrap();
        let mut identity = String::new();
        while !identity.ends_with('\n') {
            identity.push_str(&String::from_utf8_lossy(&output.recv().await.unwrap().bytes));
        }
        assert!(identity.starts_with(user), "{identity}");
        assert!(
            identity.contains("CapEff:\t0000000000000000") && identity.contains("NoNewPrivs:\t1"),
            "{identity}"
        );
        if name == "function" {
            stdin.write_all(b"write /x\n").await.unwrap();
            assert_eq!(&output.recv().await.unwrap().bytes[..], b"ok\n");
        }
    }
    node.close().await;
}

#[tokio::test]
async fn two_functions_see_nothing_of_each_other() {
    let node = node().await;
    let (one, other) = (node.start("phony").await, node.start("phony").await);
    assert_eq!(ask(&one, "write /tmp/secret").await, "ok");
    assert!(ask(&other, "read /tmp/secret").await.contains("No such file"));
    assert_eq!(ask(&other, "list /tmp/iofs").await, "lsnr.sock phonylsnr.sock");
    let processes = ask(&one, "processes").await;
    let functions = processes.split(' ').filter(|name| *name == "function").count();
    assert_eq!(functions, 1, "{processes}");
    let host = ask(&one, "identity").await;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(!host.contains(&format!("host={} ", name.trim())), "{host}");
    node.close_with([one, other]).await;
}

#[tokio::test]
async fn a_replaced_socket_does_not_lead_the_agent_to_one_of_the_host() {
    let node = node().await;
    let container = node.start("phony").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("host.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(ask(&container, &format!("relink {}", path.display())).await, "ok");
    assert_eq!(ask(&container, "hello").await, "hello");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    node.close_with([container]).await;
}
