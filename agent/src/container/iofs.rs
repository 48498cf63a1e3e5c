//! Socket directories: where a function makes `lsnr.sock`, and how the agent notices and checks it.
//!
//! Owns the readiness rules of `spec/container-contract.md` A2. Knows nothing of Docker.
//!
//! The directory is writable by the function at any time, so a path into it cannot be trusted twice: what was
//! checked is pinned by a descriptor, and callers connect through that.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, fstat};
use tokio::io::unix::AsyncFd;

/// The entry that says that a function is ready.
const SOCKET_NAME: &str = "lsnr.sock";

/// Between two looks when the node has no inotify instance left.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Why a socket directory is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The node could not watch or read the directory.
    #[error("cannot watch {path}")]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The function made an entry that breaks the contract.
    #[error("the function's {SOCKET_NAME} {0}")]
    Refused(String),
}

/// Makes the root of all socket directories, for this user alone.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o700))
}

/// Name of the lock in a root: held by the one driver that uses it, for as long as it lives.
const LOCK_NAME: &str = "lock";

/// Takes a root for this process; `None` while another has it.
pub(crate) fn lock_root(root: &Path) -> io::Result<Option<File>> {
    try_lock(File::create(root.join(LOCK_NAME))?)
}

/// The lock of a root that was used once and that nobody uses now.
pub(crate) fn lock_dead_root(root: &Path) -> Option<File> {
    let file = File::options().write(true).open(root.join(LOCK_NAME)).ok()?;
    try_lock(file).ok().flatten()
}

/// True while another process uses that root.
pub(crate) fn is_in_use(root: &Path) -> bool {
    let file = File::options().write(true).open(root.join(LOCK_NAME));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn try_lock(file: File) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What holds the socket directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// The file system of the root: a function can fill it.
    Plain,
    /// A tmpfs for each, of that size.
    Tmpfs { bytes: u64 },
}

/// Most entries that a function can make in its tmpfs.
const TMPFS_INODES_MAX: u32 = 64;

/// One container's directory; removed on drop.
#[derive(Debug)]
pub(crate) struct SocketDirectory {
    path: PathBuf,
    backing: Backing,
}

impl SocketDirectory {
    /// Makes `root/name`, writable by everyone: only its container sees it, because `root` is closed to others.
    pub(crate) fn create(root: &Path, name: &str, backing: Backing) -> io::Result<Self> {
        let path = root.join(name);
        fs::create_dir(&path)?;
        let mut directory = Self { path, backing: Backing::Plain };
        if let Backing::Tmpfs { bytes } = backing {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let options = format!("size={bytes},nr_inodes={TMPFS_INODES_MAX},mode=0777");
            mount(Some("tmpfs"), &directory.path, Some("tmpfs"), flags, Some(options.as_str()))?;
            directory.backing = backing;
        }
        fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o777))?;
        Ok(directory)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins to watch. Before the container starts, so that nothing is missed.
    pub(crate) fn watch(&self) -> Result<SocketWatch, SocketError> {
        let broken = |error: Errno| SocketError::Watch { path: self.path.clone(), source: error.into() };
        let inotify = match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
            Ok(inotify) => inotify,
            Err(Errno::EMFILE | Errno::ENFILE) => {
                return Ok(SocketWatch { path: self.path.clone(), notices: None });
            }
            Err(error) => return Err(broken(error)),
        };
        inotify
            .add_watch(&self.path, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
            .map_err(broken)?;
        #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: `Notices` owns its descriptor, keeps it open until it is dropped, and always names the same.
        let notices = unsafe { AsyncFd::register(Notices(inotify)) }
            .map_err(|error| SocketError::Watch { path: self.path.clone(), source: error.into() })?;
        Ok(SocketWatch { path: self.path.clone(), notices: Some(notices) })
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, self.backing) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket directory");
        }
    }
}

fn remove(path: &Path, backing: Backing) -> io::Result<()> {
    if backing != Backing::Plain {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes the directories under `root` that an earlier life left.
pub(crate) fn remove_leftovers(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        // EINVAL: nothing is mounted there. Whatever else keeps it mounted, the removal meets as well.
        while umount2(&entry.path(), MntFlags::MNT_DETACH).is_ok() {}
        if let Err(error) = remove(&entry.path(), Backing::Plain) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove a socket directory that is left over");
        }
    }
}

/// A watch on one directory.
#[derive(Debug)]
pub(crate) struct SocketWatch {
    path: PathBuf,
    /// `None` when the node has no inotify instance left: then it looks every few milliseconds.
    notices: Option<AsyncFd<Notices>>,
}

#[derive(Debug)]
struct Notices(Inotify);

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl SocketWatch {
    /// Waits for the entry and checks it, once. Cancel-safe: nothing is lost when dropped and asked again.
    pub(crate) async fn ready(&self) -> Result<PinnedSocket, SocketError> {
        loop {
            // First look, then wait: the entry may be older than this call.
            match fs::symlink_metadata(self.path.join(SOCKET_NAME)) {
                Ok(_) => return pin_socket(&self.path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(SocketError::Watch { path: self.path.clone(), source }),
            }
            let Some(notices) = &self.notices else {
                tokio::time::sleep(LOOK_INTERVAL).await;
                continue;
            };
            let watch = |source| SocketError::Watch { path: self.path.clone(), source };
            let mut guard = notices.readable().await.map_err(watch)?;
            // What happened does not matter: each turn looks for itself.
            let read = guard.try_io(|notices| notices.get_ref().0.read_events().map_err(io::Error::from));
            if let Ok(Err(error)) = read {
                return Err(watch(error));
            }
        }
    }
}

/// A function's socket as it was when it was checked, whatever the function does to its directory later.
#[derive(Debug)]
pub(crate) struct PinnedSocket {
    descriptor: OwnedFd,
}

impl PinnedSocket {
    /// The path to connect to, valid in this process for as long as `self` lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }
}

/// Checks the entry by the rules of A2.4 and opens what it stands for. A link to a link is refused as well:
/// the rule on link texts would not hold for the second.
fn pin_socket(directory: &Path) -> Result<PinnedSocket, SocketError> {
    let refused = |why: String| SocketError::Refused(why);
    let entry = directory.join(SOCKET_NAME);
    let metadata =
        fs::symlink_metadata(&entry).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let name = if metadata.file_type().is_symlink() {
        let link = fs::read_link(&entry).map_err(|error| refused(format!("cannot be read: {error}")))?;
        let text = link.as_os_str();
        if text.as_bytes().contains(&b'/') || text == "." || text == ".." {
            return Err(refused(format!("links to {}, which is not a bare file name", link.display())));
        }
        link
    } else {
        PathBuf::from(SOCKET_NAME)
    };
    let open = || -> nix::Result<(OwnedFd, SFlag)> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(
            directory,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let descriptor = openat(&root, &name, flags, Mode::empty())?;
        let kind = SFlag::from_bits_truncate(fstat(&descriptor)?.st_mode & SFlag::S_IFMT.bits());
        Ok((descriptor, kind))
    };
    let (descriptor, kind) = open().map_err(|error| refused(format!("cannot be opened: {error}")))?;
    if kind != SFlag::S_IFSOCK {
        return Err(refused("is not a socket".to_owned()));
    }
    Ok(PinnedSocket { descriptor })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    struct Fixture {
        _root: tempfile::TempDir,
        directory: SocketDirectory,
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let directory = SocketDirectory::create(root.path(), "one", Backing::Plain).unwrap();
        Fixture { _root: root, directory }
    }

    fn listen(fixture: &Fixture, name: &str) -> UnixListener {
        UnixListener::bind(fixture.directory.path().join(name)).unwrap()
    }

    fn link(fixture: &Fixture, target: impl AsRef<Path>) {
        symlink(target, fixture.directory.path().join(SOCKET_NAME)).unwrap();
    }

    async fn ready(fixture: &Fixture) -> Result<PinnedSocket, SocketError> {
        fixture.directory.watch().unwrap().ready().await
    }

    #[tokio::test]
    async fn a_socket_made_after_the_watch_is_noticed() {
        let fixture = fixture();
        let watch = fixture.directory.watch().unwrap();
        let (socket, _listener) = tokio::join!(watch.ready(), async { listen(&fixture, SOCKET_NAME) });
        assert!(tokio::net::UnixStream::connect(socket.unwrap().path()).await.is_ok());
    }

    #[tokio::test]
    async fn other_entries_do_not_make_it_ready() {
        let fixture = fixture();
        let watch = fixture.directory.watch().unwrap();
        let _phony = listen(&fixture, "phonylsnr.sock");
        let early = tokio::time::timeout(Duration::from_millis(50), watch.ready()).await;
        assert!(early.is_err(), "{early:?}");
        link(&fixture, "phonylsnr.sock");
        assert!(watch.ready().await.is_ok());
    }

    #[tokio::test]
    async fn links_out_of_the_directory_are_refused() {
        for target in
            ["/run/other.sock", "../other.sock", "./sub/x", "./phony.sock", "phony.sock/", "..", "."]
        {
            let fixture = fixture();
            let _phony = listen(&fixture, "phony.sock");
            link(&fixture, target);
            assert!(matches!(ready(&fixture).await, Err(SocketError::Refused(_))), "{target}");
        }
    }

    #[tokio::test]
    async fn a_link_to_a_link_is_refused() {
        let fixture = fixture();
        symlink("/run/other.sock", fixture.directory.path().join("phony.sock")).unwrap();
        link(&fixture, "phony.sock");
        assert!(matches!(ready(&fixture).await, Err(SocketError::Refused(_))));
    }

    #[tokio::test]
    async fn a_plain_file_and_a_dangling_link_are_refused() {
        let plain = fixture();
        fs::write(plain.directory.path().join(SOCKET_NAME), "").unwrap();
        assert!(matches!(ready(&plain).await, Err(SocketError::Refused(_))));
        let dangling = fixture();
        link(&dangling, "nothing");
        assert!(matches!(ready(&dangling).await, Err(SocketError::Refused(_))));
    }

    #[tokio::test]
    async fn the_checked_socket_is_reached_even_when_the_entry_is_replaced() {
        let fixture = fixture();
        let checked = listen(&fixture, "phony.sock");
        link(&fixture, "phony.sock");
        let socket = ready(&fixture).await.unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let other = UnixListener::bind(elsewhere.path().join("other.sock")).unwrap();
        other.set_nonblocking(true).unwrap();
        fs::remove_file(fixture.directory.path().join(SOCKET_NAME)).unwrap();
        link(&fixture, elsewhere.path().join("other.sock"));
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
        assert!(checked.accept().is_ok());
        assert_eq!(other.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_directory_is_gone_after_drop() {
        let fixture = fixture();
        let path = fixture.directory.path().to_owned();
        drop(fixture);
        assert!(!path.exists());
    }
}
