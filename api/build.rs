//! Has a new migration noticed: they are compiled into the library.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
