#!/bin/sh
# Unpacks programs from Debian's testing suite into a directory of its own, and builds one that Debian lacks.
#
#   eval "$(integration/setup/tools.sh)"        # containerd, runc, a registry, erofs-utils, imgcrypt, ctr-remote: what demo and tests drive
#   eval "$(integration/setup/tools.sh docker)" # besides those: dockerd, its client and buildx
#   eval "$(integration/setup/tools.sh archives)" # besides those: programs that write archives of images
#   eval "$(integration/setup/tools.sh nydus)"  # besides those: nydus-image, which cargo builds from crates.io
#   eval "$(integration/setup/tools.sh rust)"   # a Rust toolchain, for machines without one that is new enough
#
# The first exports PLYWOOD_TOOLS, with the programs in $PLYWOOD_TOOLS/bin; the next three do the same, with their own in
# $PLYWOOD_TOOLS/docker/bin, archives/bin and nydus/bin; the last puts its own first on PATH.
#
# Nothing of the host is replaced: apt runs with a configuration, lists, cache and (empty) status file of its own,
# packages are unpacked and not installed, and every program is patched to the loader and libraries unpacked beside
# it. Needs apt, dpkg-deb and network; not root. nydus needs cargo, a C compiler, cmake, make and perl instead.
# Runs again at once while the list of packages below is the same.
#
#   PLYWOOD_TOOLS_DIR       where to unpack (default /var/cache/plywood-tools, without root ~/.cache/plywood-tools)
#   PLYWOOD_DEBIAN_MIRROR   mirror to use (default: the first of the host's apt sources that offers the suite)
#   PLYWOOD_DEBIAN_KEYRING  its keys (default: the archive keyring of the host)
set -eu

say() { echo "tools: $*" >&2; }
fail() { say "$*"; exit 1; }

if [ -n "${PLYWOOD_TOOLS_DIR:-}" ]; then
    dir=$PLYWOOD_TOOLS_DIR
elif [ "$(id -u)" = 0 ]; then
    dir=/var/cache/plywood-tools
else
    dir=${XDG_CACHE_HOME:-$HOME/.cache}/plywood-tools
fi

SUITE=testing
# Where docker's client has programs that it alone starts.
PLUGINS=usr/libexec/docker/cli-plugins
# LINKED: with the libraries they need. PLAIN: programs that need nothing beyond libc, which the others bring.
# PROGRAMS: what is linked into bin/, and has to be there afterwards.
# UNPATCHED: programs that do not survive a new loader, and run with the libc of the host (2.34 or later).
UNPATCHED="ctd-decoder ctr-imgcrypt ctr-remote"
set=${1:-daemons}
case $set in
daemons)
    LINKED="runc erofs-utils jq zstd patchelf"
    PLAIN="containerd docker-registry oras busybox-static imgcrypt stargz-snapshotter"
    PROGRAMS="containerd containerd-shim-runc-v2 ctr runc docker-registry mkfs.erofs fsck.erofs dump.erofs oras jq zstd
        patchelf busybox ctd-decoder ctr-imgcrypt ctr-remote"
    ;;
docker)
    # dockerd links libsystemd; what else its package asks for (iptables, an init) is of no use without a bridge.
    LINKED="libsystemd0 patchelf"
    PLAIN="docker.io docker-cli docker-buildx"
    PROGRAMS="dockerd docker docker-buildx"
    dir=$dir/docker
    ;;
archives)
    LINKED="skopeo umoci buildah podman patchelf"
    PLAIN=
    PROGRAMS="skopeo umoci buildah podman"
    dir=$dir/archives
    ;;
nydus)
    # The last version there that has the program.
    LINKED= PLAIN="nydus-rs 2.2.0"
    PROGRAMS="nydus-image"
    dir=$dir/nydus
    ;;
rust)
    LINKED="rustc cargo rust-clippy rustfmt patchelf"
    PLAIN=
    PROGRAMS="rustc rustdoc cargo rustfmt cargo-fmt clippy-driver cargo-clippy"
    dir=$dir/rust
    ;;
*) fail "$set is none of daemons, docker, archives, nydus and rust" ;;
esac

for program in apt-get apt-config dpkg dpkg-deb flock; do
    command -v "$program" >/dev/null || fail "$program is missing: this script needs Debian, or a system made from it"
done
arch=$(dpkg --print-architecture)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
# What is in it will be replaced, so it must not be /usr or somebody's home.
[ -e "$dir/.lock" ] || [ -z "$(ls -A "$dir")" ] || fail "$dir holds something else: name an empty or a new directory"

answer() {
    case $set in
    daemons) echo "export PLYWOOD_TOOLS='$dir'" ;;
    docker | archives | nydus) echo "export PLYWOOD_TOOLS='${dir%/"$set"}'" ;;
    rust) echo "export PATH='$dir/bin':\$PATH" ;;
    esac
}

exec 9>"$dir/.lock"
flock 9
stamp="6 $SUITE $arch $LINKED $PLAIN $dir"
if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ]; then
    answer
    exit 0
fi

rm -rf "${dir:?}/.stamp" "${dir:?}/bin" "${dir:?}/root" "${dir:?}/apt"
mkdir -p "$dir/bin" "$dir/root" "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial" "$dir/apt/none"
: >"$dir/apt/status"
log=$dir/apt/log

if [ "$set" = nydus ]; then
    for program in cargo cc cmake make perl; do
        command -v "$program" >/dev/null || fail "$program is missing: nydus-image is built"
    done
    say "building $PLAIN with cargo into $dir"
    # Without optimizations it is built in a few minutes, and is fast enough for tests.
    cargo install --quiet --force --locked --debug --root "$dir" --bin nydus-image --version "${PLAIN#* }" "${PLAIN% *}" \
        >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; fail "cargo failed"; }
    "$dir/bin/nydus-image" --version >>"$log" 2>&1 || fail "nydus-image does not start"
    echo "$stamp" >"$dir/.stamp"
    answer
    exit 0
fi

keyring=${PLYWOOD_DEBIAN_KEYRING:-}
for candidate in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ -n "$keyring" ] || { [ -r "$candidate" ] && keyring=$candidate; }
done
[ -n "$keyring" ] || fail "no archive keyring: install debian-archive-keyring or name one in PLYWOOD_DEBIAN_KEYRING"

# shellcheck disable=SC2016 # apt expands it
# The mirrors the host itself uses, in its order; the security archive has no such suite.
mirrors=${PLYWOOD_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    awk '!/security/ && !seen[$0]++')}
[ -n "$mirrors" ] || fail "no mirror in the host's apt sources: name one in PLYWOOD_DEBIAN_MIRROR"

# The host's way to the network (proxies, time-outs) is kept, everything else is ours.
{
    apt-config dump | grep -E '^Acquire::(http|https|ftp|socks|Retries|ForceIPv4|ForceIPv6|Check-Valid-Until|Check-Date)' || :
    cat <<CONF
Dir::Etc::main "$dir/apt/none/main";
Dir::Etc::parts "$dir/apt/none";
Dir::Etc::preferencesparts "$dir/apt/none";
Dir::Etc::preferences "$dir/apt/none/preferences";
Dir::Etc::sourceparts "$dir/apt/none";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::State "$dir/apt";
Dir::State::lists "$dir/apt/lists";
Dir::State::status "$dir/apt/status";
Dir::State::extended_states "$dir/apt/extended_states";
Dir::Cache "$dir/apt/cache";
APT::Architecture "$arch";
APT::Architectures "$arch";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
CONF
} >"$dir/apt/apt.conf"
APT_CONFIG=$dir/apt/apt.conf
export APT_CONFIG

found=
for mirror in $mirrors; do
    echo "deb [signed-by=$keyring] $mirror $SUITE main" >"$dir/apt/sources.list"
    if apt-get -q update >"$log" 2>&1 && [ -n "$(apt-cache --names-only search '^erofs-utils$' 2>/dev/null)" ]; then
        found=$mirror
        break
    fi
    say "$mirror does not offer $SUITE ($(grep -m1 '^E:' "$log" || echo 'no such package'))"
done
[ -n "$found" ] || fail "no mirror offers $SUITE: name one in PLYWOOD_DEBIAN_MIRROR"

say "unpacking $LINKED $PLAIN from $SUITE into $dir"
# shellcheck disable=SC2086 # lists of packages
download() {
    apt-get -q -y --download-only install $LINKED || return
    [ -z "$PLAIN" ] || { cd "$dir/apt/cache/archives" && apt-get -q download $PLAIN; }
}
(download) >>"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "download failed"; }
for package in "$dir"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$dir/root"
done

# The unpacked loader, and where it is to look for libraries.
loader=$(find "$dir/root/usr/lib" "$dir/root/usr/lib64" "$dir/root/lib" "$dir/root/lib64" -maxdepth 2 \
    -name 'ld-linux*.so.*' 2>/dev/null | head -n 1)
[ -n "$loader" ] || fail "no loader among the unpacked libraries"
libraries=$(find "$dir"/root/usr/lib* "$dir"/root/lib* -maxdepth 2 -name '*.so.*' -printf '%h\n' 2>/dev/null | sort -u |
    grep -E '/lib(/[^/]*-linux-gnu[^/]*)?$' | paste -sd:)
patchelf=$dir/root/usr/bin/patchelf
cp "$patchelf" "$dir/apt/patchelf"
run="$loader --library-path $libraries $dir/apt/patchelf"
for program in "$dir"/root/usr/bin/* "$dir"/root/usr/sbin/* "$dir"/root/bin/* "$dir"/root/sbin/* \
    "$dir/root/$PLUGINS"/*; do
    if [ ! -f "$program" ] || [ -L "$program" ]; then continue; fi
    case " $UNPATCHED " in *" ${program##*/} "*) continue ;; esac
    # Scripts and static programs have no interpreter to change.
    $run --print-interpreter "$program" >/dev/null 2>&1 || continue
    if [ "$set" = archives ]; then
        # These die of a longer RPATH (Go, position-independent): they are told at the start.
        $run --set-interpreter "$loader" "$program"
    else
        # An old-style RPATH, because it also counts for the libraries of libraries.
        $run --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
    fi
done
# A library with a path of its own would not use the program's.
find "$dir"/root/usr/lib* "$dir"/root/lib* -maxdepth 2 -name '*.so*' -type f 2>/dev/null | while read -r library; do
    [ -z "$($run --print-rpath "$library" 2>/dev/null)" ] || $run --remove-rpath "$library"
done
for program in $PROGRAMS; do
    for folder in usr/bin usr/sbin bin sbin "$PLUGINS"; do
        [ -x "$dir/root/$folder/$program" ] || continue
        if [ "$set" = archives ]; then
            printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$dir/root/$folder/$program" \
                >"$dir/bin/$program"
            chmod +x "$dir/bin/$program"
        else
            ln -sf "$dir/root/$folder/$program" "$dir/bin/$program"
        fi
    done
    [ -x "$dir/bin/$program" ] || fail "$program is not among what was unpacked"
done
# A patched program either starts or dies at once.
for program in $PROGRAMS; do
    case $program in
    containerd-shim-runc-v2) argument=-v ;;
    oras | docker-buildx) argument=version ;;
    busybox) argument=true ;;
    ctd-decoder) argument=--help ;;
    *) argument=--version ;;
    esac
    "$dir/bin/$program" $argument >>"$log" 2>&1 || fail "the unpacked $program does not start"
done
rm -rf "$dir/apt/cache" "$dir/apt/lists"
echo "$stamp" >"$dir/.stamp"
case $set in
daemons) versions="containerd runc mkfs.erofs" ;;
docker) versions="dockerd" ;;
archives) versions="skopeo umoci buildah podman" ;;
rust) versions="rustc cargo" ;;
esac
for program in $versions; do
    say "$("$dir/bin/$program" --version 2>&1 | head -n 1)"
done
answer
