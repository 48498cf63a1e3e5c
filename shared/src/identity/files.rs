//! Secret files: for their owner alone, whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Largest file read here. A key and a dozen certificates are a tenth of it.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Makes the folder and those above it, for their owner alone; one that is there stays as it is.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Puts `text` in place of whatever is at `path`, in one step that also holds after a power cut.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = write_beside(path, text)?;
    fs::rename(&new, path).inspect_err(|_| forget(&new))?;
    sync_folder(path)
}

/// As [`replace`], but fails with `AlreadyExists` if something is at `path`.
pub(super) fn create(path: &Path, text: &str) -> io::Result<()> {
    let new = write_beside(path, text)?;
    // A link, unlike a rename, never replaces what is there.
    let linked = fs::hard_link(&new, path);
    forget(&new);
    linked?;
    sync_folder(path)
}

/// A secret's text.
pub(super) fn read_secret(path: &Path) -> io::Result<String> {
    let file = open(path)?;
    if file.metadata()?.permissions().mode() & 0o007 != 0 {
        let advice = format!("everybody may read or write it; run `chmod 600 {}`", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
    }
    read_bounded(file)
}

/// A text that is no secret.
pub(super) fn read(path: &Path) -> io::Result<String> {
    read_bounded(open(path)?)
}

fn open(path: &Path) -> io::Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            io::Error::new(error.kind(), "permission denied; run as a user that may read it")
        }
        _ => error,
    })
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 KiB"));
    }
    Ok(text)
}

/// Writes `text` to a new file in the folder of `path` and on to the disk.
fn write_beside(path: &Path, text: &str) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{:016x}.new", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.inspect_err(|_| forget(&new))?;
    Ok(new)
}

/// The name of a file lasts only once its folder is on the disk too.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Best effort: a leftover hurts nobody but is untidy, and what led here is told by its own error.
fn forget(path: &Path) {
    drop(fs::remove_file(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_replaced_file_is_for_its_owner_alone_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "old").unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(read_secret(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[test]
    fn what_is_there_is_never_replaced_by_create() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        create(&path, "first").unwrap();
        assert_eq!(create(&path, "second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_secret(&path).unwrap(), "first");
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[test]
    fn a_secret_that_all_may_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        create(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_secret(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert_eq!(read(&path).unwrap(), "text");
    }

    #[test]
    fn a_file_of_any_size_is_read_only_so_far() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        fs::write(&path, vec![b'x'; 64 * 1024 + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
