//! The image of a sandbox: one program of a few bytes that sleeps for ever, made here so that nothing is pulled.

use bytes::Bytes;

use super::engine::{Engine, status};

/// Name of the image; the tag tells architectures and versions apart.
const REPOSITORY: &str = "kiln-pause";
/// To be raised when the program changes.
const VERSION: u32 = 1;

/// Size of an ELF64 header and of one program header.
const HEADERS_BYTES: u64 = 64 + 56;
/// Where the program is loaded.
const BASE: u64 = 0x40_0000;

/// The program of one architecture: its ELF machine and `loop: pause(); goto loop`.
struct Program {
    tag: &'static str,
    machine: u16,
    code: &'static [u8],
}

const X86_64: Program = Program {
    tag: "amd64",
    machine: 62,
    // mov eax, SYS_pause; syscall; jmp to the start
    code: &[0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
};

const AARCH64: Program = Program {
    tag: "arm64",
    machine: 183,
    // x0..x3 = 0; x8 = SYS_ppoll; svc 0; b to the start
    code: &[
        0xe0, 0x03, 0x1f, 0xaa, 0xe1, 0x03, 0x1f, 0xaa, 0xe2, 0x03, 0x1f, 0xaa, 0xe3, 0x03, 0x1f, 0xaa, 0x28,
        0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
    ],
};

/// Makes sure that the image for `arch` (in Go's words) is in the engine and gives its reference; `None` for
/// an architecture without a program.
pub(super) async fn ensure_image(
    engine: &Engine,
    arch: &str,
) -> Result<Option<String>, bollard::errors::Error> {
    let program = match arch {
        "amd64" | "x86_64" => &X86_64,
        "arm64" | "aarch64" => &AARCH64,
        _ => return Ok(None),
    };
    let tag = format!("{VERSION}-{}", program.tag);
    let reference = format!("{REPOSITORY}:{tag}");
    match engine.inspect_image(&reference).await {
        Err(error) if status(&error) == Some(404) => {
            let changes = vec!["ENTRYPOINT [\"/pause\"]".to_owned(), "LABEL kiln.role=sandbox".to_owned()];
            engine.import_image(REPOSITORY, &tag, changes, archive(&elf(program))).await?;
        }
        found => drop(found?),
    }
    Ok(Some(reference))
}

/// A static executable: headers and code in one readable, executable segment (ELF-64 object file format).
fn elf(program: &Program) -> Vec<u8> {
    let size = HEADERS_BYTES + program.code.len() as u64;
    let mut file = Vec::with_capacity(size as usize);
    // Magic, 64 bit, little endian, version 1, System V.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&2_u16.to_le_bytes()); // executable
    file.extend_from_slice(&program.machine.to_le_bytes());
    file.extend_from_slice(&1_u32.to_le_bytes());
    file.extend_from_slice(&(BASE + HEADERS_BYTES).to_le_bytes()); // entry
    file.extend_from_slice(&64_u64.to_le_bytes()); // program headers follow
    file.extend_from_slice(&0_u64.to_le_bytes()); // no sections
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes()); // header sizes and counts
    }
    file.extend_from_slice(&1_u32.to_le_bytes()); // load
    file.extend_from_slice(&5_u32.to_le_bytes()); // read, execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    file.extend_from_slice(program.code);
    file
}

/// A root file system with the program alone.
fn archive(program: &[u8]) -> Bytes {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    archive.append_data(&mut header, "pause", program).expect("a vector takes every write");
    Bytes::from(archive.into_inner().expect("a vector takes every write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_valid_executable_for_each_architecture() {
        for program in [&X86_64, &AARCH64] {
            let file = elf(program);
            assert_eq!(file.len() as u64, HEADERS_BYTES + program.code.len() as u64);
            let entry = u64::from_le_bytes(file[24..32].try_into().unwrap());
            assert_eq!(&file[(entry - BASE) as usize..], program.code);
            let segment_bytes = u64::from_le_bytes(file[96..104].try_into().unwrap());
            assert_eq!(segment_bytes, file.len() as u64);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_program_sleeps_until_it_is_killed() {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        use std::os::unix::process::ExitStatusExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path).unwrap();
        file.write_all(&elf(&X86_64)).unwrap();
        drop(file);
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        // Asleep in its system call: not running, not a zombie.
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
