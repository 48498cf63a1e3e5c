//! The scripts, known to the server by the hash of their text.

use std::sync::LazyLock;

use redis::Script;

/// A script behind what all share. The first line tells the server whether it may run when memory is used up: what
/// frees memory must, what only reads may, what stores messages must not
/// (<https://redis.io/docs/latest/develop/programmability/lua-api/#script_flags>).
macro_rules! script {
    ($name:ident, $first:literal, $file:literal) => {
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                $first,
                "\n",
                include_str!("lua/shared.lua"),
                include_str!(concat!("lua/", $file))
            ))
        });
    };
}

script!(ENQUEUE, "#!lua", "enqueue.lua");
script!(TAKE, "#!lua flags=allow-oom", "take.lua");
script!(CHANGE, "#!lua flags=allow-oom", "change.lua");
script!(PURGE, "#!lua flags=allow-oom", "purge.lua");
script!(LANES, "#!lua flags=no-writes", "lanes.lua");
script!(LOOK, "#!lua flags=no-writes", "look.lua");
script!(READ, "#!lua flags=no-writes", "read.lua");
script!(SCAN, "#!lua flags=no-writes", "scan.lua");
script!(DEPTH, "#!lua flags=no-writes", "depth.lua");
