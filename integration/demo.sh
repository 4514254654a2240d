#!/bin/bash
# Shows Plywood at work on a Debian machine, as root: builds it, makes a small image, pushes it to a registry on
# loopback, lets an unmodified containerd pull it through Plywood, runs it with runc, and cleans up.
#
#   integration/demo.sh
#
# Everything runs in mount and process namespaces of its own, with directories, sockets and daemons of its own, so
# that a containerd or docker of the host is neither used nor disturbed and nothing stays behind. Logs are kept when a
# step fails, and their place is printed.
#
#   PLYWOOD_BIN    a plywood built before; without it, `cargo build --release` is run
#   see setup/tools.sh for where the other programs come from
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

step() { printf '\n== %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }

# --- outside of the namespaces: what needs the network and the compiler ----------------------------------------

if [ -z "${PLYWOOD_DEMO_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || fail "containerd, mounts and runc need root"
    step "Set-up"
    if [ -z "${PLYWOOD_BIN:-}" ]; then
        path=$("$repo/integration/setup/build.sh")
        eval "$path"
    fi
    tools=$("$repo/integration/setup/tools.sh")
    eval "$tools"
    echo "programs of containerd, runc and the registry: $PLYWOOD_TOOLS/bin"
    if [ -z "${PLYWOOD_BIN:-}" ]; then
        step "Build"
        (cd "$repo" && cargo build --release --locked --package plywood)
        PLYWOOD_BIN=${CARGO_TARGET_DIR:-$repo/target}/release/plywood
    fi
    [ -x "$PLYWOOD_BIN" ] || fail "$PLYWOOD_BIN is not a program"
    for module in erofs overlay loop; do
        modprobe "$module" 2>/dev/null || :
    done
    for filesystem in erofs overlay; do
        grep -qw "$filesystem" /proc/filesystems || fail "this kernel has no $filesystem"
    done
    work=$(mktemp -d /tmp/plywood-demo.XXXXXX)
    mkdir "$work/logs"
    export PLYWOOD_DEMO_INSIDE=$work PLYWOOD_BIN PLYWOOD_TOOLS
    # shellcheck disable=SC2317 # the trap calls it
    finish() {
        local status=$? group
        # The namespaces of containers: containerd removes a container's cgroup but not its own above it.
        for group in /sys/fs/cgroup/"${work##*/}" /sys/fs/cgroup/*/"${work##*/}"; do
            [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || :
        done
        if [ "$status" != 0 ]; then
            mv "$work/logs" "$work.logs"
            printf '\ndemo: failed; the logs are in %s\n' "$work.logs" >&2
        fi
        rm -rf "$work"
    }
    trap finish EXIT
    # Mounts go with the namespace, and the kernel ends whatever is left in it when its first process ends.
    unshare --mount --pid --fork --kill-child --mount-proc "$BASH" "${BASH_SOURCE[0]}"
    exit
fi

# --- inside ----------------------------------------------------------------------------------------------------

work=$PLYWOOD_DEMO_INSIDE
namespace=${work##*/}
logs=$work/logs
snapshots=$work/containerd/io.containerd.snapshotter.v1.erofs
PATH=$PLYWOOD_TOOLS/bin:$PATH
# Shims and ctr keep sockets and fifos at fixed places below /run/containerd.
mount -t tmpfs -o mode=755 run /run
mkdir -p "$work/image" "$snapshots" "$work/registry"
chmod 700 "$snapshots"
daemons=()

stop() {
    trap - EXIT
    for pid in "${daemons[@]}"; do
        kill "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
    # containerd leaves EROFS images mounted below its snapshot directories; deepest first.
    awk -v top="$work/" 'index($5, top) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r target; do
        umount "$target" 2>/dev/null || umount -l "$target"
    done
}
trap stop EXIT

# Waits until a command succeeds, at most ten seconds: waitfor WHAT COMMAND...
waitfor() {
    local what=$1
    shift
    for _ in $(seq 100); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "$what did not come up"
}
ctr() { command ctr --address "$work/containerd.sock" --namespace "$namespace" "$@"; }

step "An image of three gzip layers"
# layer NAME: packs $work/image/NAME as a layer blob of the OCI layout; appends to $layers and $diff_ids.
layers=() diff_ids=()
blobs=$work/image/oci/blobs/sha256
mkdir -p "$blobs"
# blob FILE: moves it into the layout and prints its descriptor's digest and size.
blob() {
    local digest size
    digest=$(sha256sum <"$1" | cut -d' ' -f1) size=$(stat -c %s "$1")
    mv "$1" "$blobs/$digest"
    printf '"digest":"sha256:%s","size":%s' "$digest" "$size"
}
layer() {
    local tar=$work/image/$1.tar
    tar -C "$work/image/$1" --format=pax --sort=name --numeric-owner --owner=0 --group=0 \
        --mtime='2024-05-06 07:08:09.123456789Z' -cf "$tar" .
    diff_ids+=("\"sha256:$(sha256sum <"$tar" | cut -d' ' -f1)\"")
    gzip -n "$tar"
    layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$(blob "$tar.gz")}")
    printf '%s:' "$1"
    tar -C "$work/image/$1" -c . | tar -t | sed 's,^\./,,' | grep -v '/$' | tr '\n' ' ' | sed 's/^/ /'
    echo
}
make_image() {
    mkdir -p base/{bin,etc,tmp,proc,sys,dev} base/opt/menu change/etc change/opt/menu top/bin
    install -m 755 "$PLYWOOD_TOOLS/bin/busybox" base/bin/busybox
    for name in sh cat ls stat; do ln base/bin/busybox "base/bin/$name"; done
    echo 'a file of the first layer' >base/etc/first
    echo 'hidden by the second layer' >base/etc/removed
    echo 'hidden with its whole directory' | tee base/opt/menu/breakfast >base/opt/menu/lunch
    : >change/etc/.wh.removed
    : >change/opt/menu/.wh..wh..opq
    echo 'the only file of the directory now' >change/opt/menu/dinner
    echo 'a file of the second layer' >change/etc/second
    cat >top/bin/hello <<'HELLO'
#!/bin/sh
echo "Hello from a container whose layers Plywood unpacked."
cat /etc/first /etc/second
echo "/etc/removed is $(test -e /etc/removed && echo still there || echo gone)"
echo "/opt/menu holds: $(ls /opt/menu)"
echo "/bin/sh has $(stat -c %h /bin/sh) names, /bin/hello is from $(stat -c %y /bin/hello)"
test ! -e /etc/removed && test "$(ls /opt/menu)" = dinner
HELLO
    chmod 755 top/bin/hello
}
(cd "$work/image" && make_image)
layer base
layer change
layer top
join() { local IFS=,; echo "$*"; }
arch=$(dpkg --print-architecture)
echo "{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{\"Entrypoint\":[\"/bin/hello\"],\"Env\":[\"PATH=/bin\"]},\
\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$(join "${diff_ids[@]}")]}}" >"$work/image/config"
echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":\
{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",$(blob "$work/image/config")},\
\"layers\":[$(join "${layers[@]}")]}" >"$work/image/manifest"
echo "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
$(blob "$work/image/manifest"),\"annotations\":{\"org.opencontainers.image.ref.name\":\"latest\"}}]}" >"$work/image/oci/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci/oci-layout"

step "A registry on loopback, Plywood, containerd"
cat >"$work/registry.yml" <<YML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:0"}
YML
docker-registry serve "$work/registry.yml" >"$logs/registry.log" 2>&1 &
daemons+=($!)
waitfor "the registry" grep -q 'listening on' "$logs/registry.log"
registry=$(grep -o 'listening on [0-9.:]*' "$logs/registry.log" | awk '{print $3}')
image=$registry/plywood/demo:latest
echo "registry on $registry"

cat >"$work/plywood.toml" <<TOML
[server]
socket = "$work/plywood.sock"
metrics_socket = "$work/plywood-metrics.sock"

[containerd]
address = "$work/containerd.sock"

[snapshots]
roots = ["$snapshots"]
TOML
"$PLYWOOD_BIN" serve --config "$work/plywood.toml" >"$logs/plywood.log" 2>&1 &
daemons+=($!)
waitfor "plywood" test -S "$work/plywood.sock"
"$PLYWOOD_BIN" --version

cat >"$work/containerd.toml" <<TOML
version = 3
root = "$work/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
    "io.containerd.nri.v1.nri", "io.containerd.differ.v1.erofs"]

[grpc]
address = "$work/containerd.sock"
[ttrpc]
address = "$work/containerd.sock.ttrpc"

[proxy_plugins.plywood]
type = "diff"
address = "$work/plywood.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "$work/opt"
[plugins."io.containerd.service.v1.diff-service"]
default = ["plywood", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/$arch"
snapshotter = "erofs"
differ = "plywood"
TOML
containerd --config "$work/containerd.toml" >"$logs/containerd.log" 2>&1 &
daemons+=($!)
waitfor "containerd" ctr version
containerd --version

step "Push"
oras cp --from-oci-layout "$work/image/oci:latest" --to-plain-http "$image" >"$logs/push.log" 2>&1 ||
    fail "the image could not be pushed"
echo "$image"

step "Pull: containerd asks Plywood to apply every layer"
ctr image pull --plain-http --snapshotter erofs "$image" >"$logs/pull.log" 2>&1 || { tail -n 5 "$logs/pull.log" >&2; fail "the pull failed"; }
grep . "$logs/pull.log" | tail -n 1
echo
grep 'method="Apply"' "$logs/plywood.log" || fail "plywood logged no Apply: the layers did not pass through it"

step "What landed in the snapshot directories"
found=0
for directory in "$snapshots"/snapshots/*; do
    [ -e "$directory/layer.erofs" ] || continue
    found=$((found + 1))
    echo "${directory#"$work/"}"
    # shellcheck disable=SC2012 # to be looked at, not to be parsed
    ls -lA --time-style=long-iso "$directory" | sed '1d; s/^/    /'
    "$PLYWOOD_BIN" check "$directory/layer.erofs" | sed 's/^/    /'
done
[ "$found" = 3 ] || fail "$found layers have a layer.erofs, 3 were pulled"

step "Run"
ctr run --rm --snapshotter erofs --runc-root "$work/runc" "$image" hello | tee "$logs/run.log"
grep -q '^Hello from a container' "$logs/run.log" || fail "the container did not say hello"

step "Done: pulled, unpacked by Plywood, mounted by containerd, run by runc"
