//! Puts the Rust FDK's files into the binary, so that `kiln init --runtime rust` works without a network.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let fdk = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../fdk/rust").canonicalize()?;
    let mut files: Vec<PathBuf> = vec!["Cargo.toml".into(), "README.md".into()];
    for entry in fs::read_dir(fdk.join("src"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.strip_prefix(&fdk)?.to_owned());
        }
    }
    files.sort();
    let mut code = String::from("pub(crate) static FDK_FILES: &[(&str, &str)] = &[\n");
    for file in files {
        let (name, path) = (file.display().to_string(), fdk.join(&file).display().to_string());
        writeln!(code, "    ({name:?}, include_str!({path:?})),")?;
    }
    code.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("fdk_files.rs"), code)?;
    println!("cargo::rerun-if-changed={}", fdk.join("src").display());
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
