#!/bin/sh
# Makes a Debian machine able to build Plywood: the packages its build needs, and a Rust toolchain.
#
#   path=$(integration/setup/build.sh [PACKAGE...]) && eval "$path"     PACKAGEs are installed as well
#
# Installs with apt-get only what is missing, so that a second run changes nothing and needs no root. The Rust on PATH,
# or in rustup's default place, is used when it is new enough; otherwise one is unpacked beside the host (tools.sh rust).
# Prints the line that puts it on PATH.
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

# Whether the cargo and rustc found on a search path are new enough: new_enough PATH
new_enough() {
    found=$(PATH=$1 rustc --version 2>/dev/null | awk '{print $2}')
    PATH=$1 command -v cargo >/dev/null && [ -n "$found" ] &&
        [ "$(printf '%s\n%s\n' "$RUST" "${found%%-*}" | sort -V | head -n 1)" = "$RUST" ]
}
rustup=${CARGO_HOME:-$HOME/.cargo}/bin
if new_enough "$PATH"; then
    :
elif new_enough "$rustup:$PATH"; then
    echo "export PATH='$rustup':\$PATH"
else
    echo "build: no Rust $RUST or later here (rustup would bring it)" >&2
    "$(dirname "$0")/tools.sh" rust || fail "install Rust $RUST or later: https://rustup.rs"
fi
