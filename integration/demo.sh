#!/bin/bash
# Shows Plywood at work on a Debian machine, as root; `integration/demo.sh --help` says more.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

usage() {
    cat <<'USAGE'
Usage: integration/demo.sh [--help]

Shows Plywood at work on a Debian machine, as root: builds it, makes a small
image, pushes it to a registry, lets an unmodified containerd pull it through
Plywood, runs it with runc, and cleans up. Every run shows the same digests.

Everything runs in namespaces of its own (mounts, processes, network), with
directories, sockets and daemons of its own. A containerd or docker of the host
is neither used nor disturbed, and nothing stays behind, not even after ^C.
Logs are kept when a step fails, and their place is printed.

Environment:
  PLYWOOD_BIN   a plywood built before; without it, the demo runs
                cargo build --release, which takes some minutes the first time
  TMPDIR        directory for all files of the run [default: /tmp]

integration/setup/tools.sh says where the other programs come from.
USAGE
}
step() { printf '\n== %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }

if [ "$#" -gt 0 ]; then
    case $1 in
    -h | --help) usage; exit ;;
    *) echo "demo: unknown argument $1; see integration/demo.sh --help" >&2; exit 2 ;;
    esac
fi

# --- outside of the namespaces: what needs the network and the compiler ----------------------------------------

if [ -z "${PLYWOOD_DEMO_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || fail "containerd, mounts and runc need root"
    # Named before it is made, so that there is no moment at which it exists and `finish` does not know it.
    work=$(mktemp -u -p "${TMPDIR:-/tmp}" plywood-demo.XXXXXX)
    # 107 bytes are the longest path of a socket; the longest one below this directory is containerd.sock.ttrpc.
    [ "${#work}" -le 80 ] || fail "$work is too long a path for sockets: set TMPDIR to a shorter directory"

    # Runs a command in a process group of its own. `wait` ends when a signal comes, a command in the foreground does
    # not let its trap run.
    run() {
        set -m
        "$@" </dev/null &
        set +m
        wait "$!"
    }
    # Ends what `run` started. A process that begins the namespaces ignores signals until it has its own trap, so the
    # signal is sent until the group is gone. Nothing in the namespaces outlives their first process. SIGINT comes
    # first because shells report nothing of it.
    end() {
        local group try signal
        for group in $(jobs -p); do
            for try in {0..99}; do
                case $try in ?) signal=INT ;; [1-4]?) signal=TERM ;; *) signal=KILL ;; esac
                kill "-$signal" -- "-$group" 2>/dev/null || break
                sleep 0.1
            done
        done
    }
    interrupt() {
        echo "demo: interrupted, cleaning up" >&2 || :
        interrupted=1
        exit "$1"
    }
    # shellcheck disable=SC2317 # the trap calls it
    finish() {
        local status=$? group
        # A second ^C must not stop the cleaning.
        trap '' INT TERM HUP
        end 2>/dev/null
        # The namespaces of containers: containerd removes a container's cgroup but not its own above it.
        for group in /sys/fs/cgroup/"${work##*/}" /sys/fs/cgroup/*/"${work##*/}"; do
            [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || :
        done
        [ -n "$interrupted" ] || cat "$work/messages" >&2 || :
        if [ "$status" != 0 ] && [ -z "$interrupted" ]; then
            mv "$work/logs" "$work.logs"
            printf '\ndemo: failed; the logs are in %s\n' "$work.logs" >&2
        fi
        rm -rf "$work"
    }
    interrupted=
    trap finish EXIT
    trap 'interrupt 130' INT
    trap 'interrupt 143' TERM
    trap 'interrupt 129' HUP
    mkdir -m 700 "$work"
    mkdir "$work/logs" "$work/tmp"
    : >"$work/messages"
    export TMPDIR=$work/tmp

    step "Set-up"
    if [ -z "${PLYWOOD_BIN:-}" ]; then
        run "$repo/integration/setup/build.sh" >"$work/path"
        eval "$(cat "$work/path")"
    fi
    run "$repo/integration/setup/tools.sh" >"$work/tools"
    eval "$(cat "$work/tools")"
    echo "programs of containerd, runc and the registry: $PLYWOOD_TOOLS/bin"
    if [ -z "${PLYWOOD_BIN:-}" ]; then
        step "Build"
        run cargo build --manifest-path "$repo/Cargo.toml" --release --locked --package plywood
        PLYWOOD_BIN=${CARGO_TARGET_DIR:-$repo/target}/release/plywood
    fi
    [ -x "$PLYWOOD_BIN" ] || fail "$PLYWOOD_BIN is not a program"
    PLYWOOD_BIN=$(realpath "$PLYWOOD_BIN")
    for module in erofs overlay loop; do
        modprobe "$module" 2>/dev/null || :
    done
    for filesystem in erofs overlay; do
        grep -qw "$filesystem" /proc/filesystems || fail "this kernel has no $filesystem"
    done
    export PLYWOOD_DEMO_INSIDE=$work PLYWOOD_BIN PLYWOOD_TOOLS
    # Mounts go with the namespace, and the kernel ends whatever is left in it when its first process ends.
    run unshare --mount --pid --net --fork --kill-child --mount-proc "$BASH" "${BASH_SOURCE[0]}"
    exit
fi

# --- inside ----------------------------------------------------------------------------------------------------

work=$PLYWOOD_DEMO_INSIDE
# Shown in the end, but not after an interruption, of which every program here complains.
exec 2>"$work/messages"
namespace=${work##*/}
logs=$work/logs
snapshots=$work/containerd/io.containerd.snapshotter.v1.erofs
PATH=$PLYWOOD_TOOLS/bin:$PATH
umask 022
# Shims and ctr keep sockets and fifos at fixed places below /run/containerd.
mount -t tmpfs -o mode=755 run /run
# A network of its own: the registry's port is free, the same in every run, and out of the host's reach.
busybox ip link set lo up
mkdir -p "$work/image" "$snapshots" "$work/registry"
chmod 700 "$snapshots"
daemons=()

stop() {
    # Further signals must not end the commands that clean up.
    trap '' INT TERM
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
trap 'exit 130' INT TERM

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
    # Without these options, pax headers hold the times at which this run made the files, and tar's process id.
    tar -C "$work/image/$1" --format=pax --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' \
        --sort=name --numeric-owner --owner=0 --group=0 --mtime='2024-05-06 07:08:09.123456789Z' -cf "$tar" .
    diff_ids+=("\"sha256:$(sha256sum <"$tar" | cut -d' ' -f1)\"")
    gzip -n "$tar"
    layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$(blob "$tar.gz")}")
    echo "$1: $(tar -C "$work/image/$1" --sort=name -c . | tar -t | sed 's,^\./,,' | grep -v '/$' | paste -sd ' ')" |
        fold -s -w 80
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
registry=127.0.0.1:5000
cat >"$work/registry.yml" <<YML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "$registry"}
YML
docker-registry serve "$work/registry.yml" >"$logs/registry.log" 2>&1 &
daemons+=($!)
waitfor "the registry" grep -q 'listening on' "$logs/registry.log"
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
containerd --version | cut -c 1-80

step "Push"
oras cp --from-oci-layout "$work/image/oci:latest" --to-plain-http "$image" >"$logs/push.log" 2>&1 ||
    fail "the image could not be pushed"
echo "$image"
grep -o 'Digest: .*' "$logs/push.log"

step "Pull: containerd asks Plywood to apply every layer"
ctr image pull --plain-http --snapshotter erofs "$image" >"$logs/pull.log" 2>&1 || { tail -n 5 "$logs/pull.log" >&2; fail "the pull failed"; }
echo "Plywood's log, shortened:"
# Of each line, the fields that are the same in every run; of a digest, the first twelve digits.
shorten() {
    awk '{
        line = ""
        for (i = 1; i <= NF; i++) if ($i ~ /^(digest|diff_id|image_bytes)=/) {
            field = $i
            gsub(/"/, "", field)
            if (field ~ /sha256:/) field = substr(field, 1, index(field, ":") + 12)
            line = line " " field
        }
        print "   " line
    }'
}
grep 'method="Apply"' "$logs/plywood.log" | shorten ||
    fail "plywood logged no Apply: the layers did not pass through it"

step "What landed in the snapshot directories"
found=0
for directory in "$snapshots"/snapshots/*; do
    [ -e "$directory/layer.erofs" ] || continue
    found=$((found + 1))
    echo "${directory#"$work/"}"
    (cd "$directory" && stat --printf='    %A %8s  %n\n' .erofslayer * && "$PLYWOOD_BIN" check layer.erofs | sed 's/^/    /') |
        cut -c 1-80
done
[ "$found" = 3 ] || fail "$found layers have a layer.erofs, 3 were pulled"

step "Run"
ctr run --rm --snapshotter erofs --runc-root "$work/runc" "$image" hello | tee "$logs/run.log"
grep -q '^Hello from a container' "$logs/run.log" || fail "the container did not say hello"

step "Done: pulled, unpacked by Plywood, mounted by containerd, run by runc"
