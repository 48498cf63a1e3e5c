//! What the engine is asked to make: plan and settings in, request body out. Pure.
//!
//! Owns the hardening of `spec/container-contract.md` A7. Every container gets all of it; the formats of 2018
//! keep their image's user and a writable root, because images of that time need both (part B1).

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits,
};

use super::config::DockerConfig;
use super::labels::Identity;
use crate::container::{ContainerPlan, Transport};

/// Where a function makes its socket.
const SOCKET_MOUNT: &str = "/tmp/iofs";

/// Period over which a CPU limit is kept, in microseconds: the kernel's default.
const CPU_PERIOD_MICROS: i64 = 100_000;

/// Smallest CPU quota that the kernel accepts, in microseconds.
const CPU_QUOTA_MICROS_MIN: i64 = 1_000;

/// Memory of a sandbox in bytes: the engine's own minimum is 6 MiB, runc needs a few to set it up.
const SANDBOX_MEMORY_BYTES: i64 = 16 << 20;

/// The request for a function's container. `socket_directory` is the path that the engine mounts, `network`
/// an engine network mode.
pub(super) fn function(
    config: &DockerConfig,
    identity: &Identity,
    plan: &ContainerPlan,
    socket_directory: Option<&Path>,
    network: &str,
) -> ContainerCreateBody {
    let spec = &plan.function.spec;
    let pipes = plan.transport == Transport::Pipes;
    let memory_bytes = i64::try_from(spec.memory_mib.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
    let mounts = socket_directory.map(|directory| vec![socket_mount(directory)]);
    let tmpfs_mib = if pipes { spec.tmpfs_mib } else { Some(spec.tmpfs_mib.unwrap_or(config.tmpfs_mib)) };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        env: Some(plan.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        labels: Some(identity.of_function(&plan.function)),
        user: (!pipes).then(|| config.user.clone()),
        attach_stdin: Some(pipes),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(pipes),
        stdin_once: Some(pipes),
        tty: Some(false),
        // Probing each warm container would cost the node for nothing: readiness is the socket.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(HostConfig {
            memory: Some(memory_bytes),
            memory_swap: Some(memory_bytes),
            cpu_period: spec.cpu_millis.map(|_| CPU_PERIOD_MICROS),
            cpu_quota: spec.cpu_millis.map(|millis| (i64::from(millis) * 100).max(CPU_QUOTA_MICROS_MIN)),
            pids_limit: Some(i64::from(config.pids_max)),
            ulimits: Some(ulimits(config)),
            readonly_rootfs: Some(!pipes),
            tmpfs: tmpfs_mib.map(|mib| {
                // Executable, as Fn's is: runtimes unpack native libraries there.
                HashMap::from([("/tmp".to_owned(), format!("rw,exec,nosuid,nodev,mode=1777,size={mib}m"))])
            }),
            mounts,
            ..hardened(network)
        }),
        ..ContainerCreateBody::default()
    }
}

/// The request for a sandbox: a process that does nothing and owns a network namespace.
pub(super) fn sandbox(identity: &Identity, image: &str, network: &str) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(image.to_owned()),
        labels: Some(identity.of_role("sandbox")),
        user: Some("65534:65534".to_owned()),
        host_config: Some(HostConfig {
            memory: Some(SANDBOX_MEMORY_BYTES),
            memory_swap: Some(SANDBOX_MEMORY_BYTES),
            readonly_rootfs: Some(true),
            init: Some(false),
            ..hardened(network)
        }),
        ..ContainerCreateBody::default()
    }
}

/// What holds for everything the driver makes. The engine's default seccomp profile stays on.
fn hardened(network: &str) -> HostConfig {
    HostConfig {
        network_mode: Some(network.to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        init: Some(true),
        ipc_mode: Some("private".to_owned()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..HostConfig::default()
    }
}

fn socket_mount(directory: &Path) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(directory.to_string_lossy().into_owned()),
        target: Some(SOCKET_MOUNT.to_owned()),
        read_only: Some(false),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

fn ulimits(config: &DockerConfig) -> Vec<ResourcesUlimits> {
    let limit = |name: &str, value: i64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    vec![
        limit("nofile", i64::from(config.open_files_max)),
        limit("memlock", i64::try_from(config.locked_memory_bytes_max).unwrap_or(i64::MAX)),
        limit("sigpending", i64::from(config.pending_signals_max)),
        limit("msgqueue", i64::try_from(config.message_queue_bytes_max).unwrap_or(i64::MAX)),
        limit("core", 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiln_shared::function::{Function, FunctionSpec};
    use kiln_shared::ids::{AppId, FunctionId, NodeId};

    use super::*;

    fn body(transport: Transport, change: impl FnOnce(&mut FunctionSpec)) -> ContainerCreateBody {
        let mut spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "team/f:1");
        change(&mut spec);
        let plan = ContainerPlan {
            function: Arc::new(Function::new(spec)),
            environment: vec![("A".to_owned(), "1=2".to_owned())],
            transport,
        };
        let node = NodeId::new("n");
        let directory = (transport == Transport::Socket).then(|| Path::new("/run/kiln/x"));
        let config = DockerConfig::new(node.clone(), "/run/kiln");
        function(&config, &Identity::new(node), &plan, directory, "container:net")
    }

    fn host(body: &ContainerCreateBody) -> &HostConfig {
        body.host_config.as_ref().unwrap()
    }

    #[test]
    fn every_function_is_hardened() {
        for transport in [Transport::Socket, Transport::Pipes] {
            let body = body(transport, |_| {});
            let host = host(&body);
            assert_eq!(host.cap_drop.as_deref(), Some(["ALL".to_owned()].as_slice()));
            assert_eq!(host.security_opt.as_deref(), Some(["no-new-privileges:true".to_owned()].as_slice()));
            assert_eq!((host.memory, host.memory_swap), (Some(128 << 20), Some(128 << 20)));
            assert_eq!((host.pids_limit, host.init, host.privileged), (Some(50), Some(true), Some(false)));
            assert_eq!(host.log_config.as_ref().unwrap().typ.as_deref(), Some("none"));
            assert_eq!(host.network_mode.as_deref(), Some("container:net"));
            let nofile =
                host.ulimits.as_ref().unwrap().iter().find(|limit| limit.name.as_deref() == Some("nofile"));
            assert_eq!(nofile.map(|limit| (limit.soft, limit.hard)), Some((Some(350), Some(350))));
            assert_eq!(body.env.as_deref(), Some(["A=1=2".to_owned()].as_slice()));
        }
    }

    #[test]
    fn only_the_formats_of_2018_keep_user_and_root() {
        let socket = body(Transport::Socket, |_| {});
        assert_eq!(socket.user.as_deref(), Some("1000:1000"));
        assert_eq!((host(&socket).readonly_rootfs, socket.open_stdin), (Some(true), Some(false)));
        assert!(host(&socket).tmpfs.as_ref().unwrap()["/tmp"].ends_with("size=64m"));
        let pipes = body(Transport::Pipes, |_| {});
        assert_eq!(pipes.user, None);
        assert_eq!(
            (host(&pipes).readonly_rootfs, pipes.open_stdin, pipes.stdin_once),
            (Some(false), Some(true), Some(true))
        );
        assert_eq!((&host(&pipes).tmpfs, &host(&pipes).mounts), (&None, &None));
    }

    #[test]
    fn a_cpu_limit_becomes_a_quota_that_the_kernel_accepts() {
        assert_eq!(host(&body(Transport::Socket, |_| {})).cpu_quota, None);
        for (millis, quota) in [(1, 1_000), (100, 10_000), (2_500, 250_000)] {
            let body = body(Transport::Socket, |spec| spec.cpu_millis = Some(millis));
            assert_eq!(
                (host(&body).cpu_quota, host(&body).cpu_period),
                (Some(quota), Some(100_000)),
                "{millis}"
            );
        }
    }

    #[test]
    fn an_absurd_memory_limit_does_not_wrap_around() {
        let body = body(Transport::Socket, |spec| spec.memory_mib = u64::MAX);
        assert_eq!(host(&body).memory, Some(i64::MAX));
    }
}
