#!/bin/sh
# Makes a Debian machine able to build Plywood: the packages its build needs, and a check of the Rust toolchain.
#
#   integration/setup/build.sh [PACKAGE...]     PACKAGEs are installed as well
#
# Installs with apt-get only what is missing, so that a second run changes nothing and needs no root.
set -eu

# containerd-client's build script runs protoc; C compilers build libzstd.
PACKAGES="ca-certificates gcc g++ libc6-dev make pkg-config protobuf-compiler git $*"
# The oldest compiler that builds the whole set of dependencies; Cargo.toml says the same.
RUST=1.91

fail() { echo "build: $*" >&2; exit 1; }

command -v dpkg-query >/dev/null || fail "this is not Debian: install $PACKAGES (or their like) yourself"
missing=
for package in $PACKAGES; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || fail "missing, and only root can install them:$missing"
    log=$(mktemp)
    echo "build: installing$missing" >&2
    # Lists of a fresh machine are empty, lists of an old one name packages the mirror no longer has.
    DEBIAN_FRONTEND=noninteractive apt-get -q update >"$log" 2>&1 || cat "$log" >&2
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; rm -f "$log"; fail "apt-get could not install$missing"; }
    rm -f "$log"
fi

# rustup's default place, which a login shell would have on its PATH.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null || fail "cargo is missing: Plywood needs Rust $RUST or later, newer than Debian's own; see https://rustup.rs"
found=$(rustc --version | awk '{print $2}')
[ "$(printf '%s\n%s\n' "$RUST" "${found%%-*}" | sort -V | head -n 1)" = "$RUST" ] ||
    fail "Rust $RUST or later is needed and $found was found: run 'rustup update stable'"
