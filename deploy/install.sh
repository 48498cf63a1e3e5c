#!/usr/bin/env bash
# Installs Kiln and its systemd units on this machine, from a build in target/release. Starts nothing.
#
#   deploy/install.sh single        kiln and kiln.service: one machine
#   deploy/install.sh lb            kiln-lb and its unit, and the command line: a balancer of a fleet
#   deploy/install.sh agent         kiln-agent and its unit: a node of a fleet
#   deploy/install.sh remove        all units and binaries; data and settings stay
#
# DESTDIR (default: none) is put before every path, for packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

root=${DESTDIR:-}
built=${CARGO_TARGET_DIR:-target}/release

# install_part BINARY UNIT: one binary with its unit and an example of its settings.
install_part() {
    [ -x "$built/$1" ] || die "$built/$1 is missing; build it with: cargo build --release"
    as_root install -D -m 755 "$built/$1" "$root/usr/local/bin/$1"
    as_root install -D -m 644 "deploy/systemd/$2.service" "$root/etc/systemd/system/$2.service"
    as_root install -D -m 640 "deploy/systemd/$2.env.example" "$root/etc/kiln/$2.env.example"
    if [ ! -e "$root/etc/kiln/$2.env" ]; then
        as_root install -m 640 "deploy/systemd/$2.env.example" "$root/etc/kiln/$2.env"
    fi
    as_root install -D -m 644 docs/operator.md "$root/usr/local/share/doc/kiln/operator.md"
    reload
    say "installed $1; look at /etc/kiln/$2.env, then start it: systemctl enable --now $2"
}

remove() {
    local unit
    for unit in kiln kiln-lb kiln-agent; do
        if [ -z "$root" ] && [ -d /run/systemd/system ] && [ -e "/etc/systemd/system/$unit.service" ]; then
            as_root systemctl disable --now "$unit"
        fi
        as_root rm -f "$root/etc/systemd/system/$unit.service" "$root/usr/local/bin/$unit" "$root/etc/kiln/$unit.env.example"
    done
    reload
    say "removed; data is left in /var/lib, settings in /etc/kiln"
}

reload() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then as_root systemctl daemon-reload; fi
}

case "${1:-}" in
    single) install_part kiln kiln ;;
    lb)
        as_root install -D -m 755 "$built/kiln" "$root/usr/local/bin/kiln"
        install_part kiln-lb kiln-lb
        ;;
    agent)
        install_part kiln-agent kiln-agent
        ;;
    remove) remove ;;
    *) die "use: deploy/install.sh single|lb|agent|remove" ;;
esac
