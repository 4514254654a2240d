#!/bin/bash
# Runs every test there is, from formatting to a real containerd, and ends with one line that counts them.
#
#   integration/test.sh           everything
#   integration/test.sh NAME      the tests whose name holds NAME, without formatting and lints
#
# As root on Debian it first installs what is missing. Without root, or where a tool or a kernel feature is missing,
# the tests that need it are skipped and named; the others run. The exit status is 0 when nothing failed.
set -uo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$repo" || exit 1

# strace counts system calls, attr and acl read extended attributes, GNU tar packs and e2fsprogs makes small disks.
# python3 starts the daemon under a filter of system calls. xz, lz4 and bzip2 pack what `plywood stream` unpacks.
# XFS shares the blocks of copies. cmake and perl build what nydus-image needs.
TEST_PACKAGES="strace attr acl tar zstd xz-utils lz4 bzip2 util-linux e2fsprogs xfsprogs python3 cmake perl"

case ${1:-} in
-*) sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' "$0"; [ "$1" = --help ] && exit; exit 2 ;;
esac
name=${1:-}

passed=0 failed=0 failures=() skips=()
step() { printf '\n== %s\n' "$*"; }

step "Set-up"
path=$(integration/setup/build.sh) || exit 1
eval "$path"
# shellcheck disable=SC2086 # a list of packages
integration/setup/build.sh $TEST_PACKAGES >/dev/null || echo "test: going on; tests that need them are skipped"
if tools=$(integration/setup/tools.sh); then
    eval "$tools"
    echo "containerd and its like: $PLYWOOD_TOOLS/bin"
else
    echo "test: going on; tests that need containerd or erofs-utils are skipped"
fi
integration/setup/tools.sh docker >/dev/null || echo "test: going on; tests that need docker are skipped"
integration/setup/tools.sh archives >/dev/null || echo "test: going on; tests that need skopeo and its like are skipped"
integration/setup/tools.sh nydus >/dev/null || echo "test: going on; tests that need nydus-image are skipped"
export CARGO_TERM_COLOR=never

# check NAME COMMAND...: one check that passes or fails as a whole.
check() {
    local name=$1
    shift
    step "$name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("$name")
    fi
}
if [ -z "$name" ]; then
    check "Formatting" cargo fmt --all --check
    check "Lints" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
fi

step "Tests"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --locked --no-fail-fast -- ${name:+"$name"} 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
read -r ok bad ignored < <(awk '/^test result: / {
    for (i = 1; i < NF; i++) {
        if ($(i + 1) == "passed;") ok += $i
        if ($(i + 1) == "failed;") bad += $i
        if ($(i + 1) == "ignored;") ignored += $i
    }
} END {print ok + 0, bad + 0, ignored + 0}' "$log")
passed=$((passed + ok)) failed=$((failed + bad))
mapfile -t -O "${#failures[@]}" failures < <(sed -nE 's/^test (.*[^ ]) *\.\.\. FAILED$/\1/p' "$log")
# libtest writes "ignored, reason" and the harness of tests that look for tools "ignored (reason)".
mapfile -t skips < <(sed -nE 's/^test (.*[^ ]) *\.\.\. ignored,? ?(.*)$/\1 \2/p' "$log")
# A test program that does not build or dies says no result of its own.
if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
    failed=$((failed + 1))
    failures+=("cargo test, which ended with $status")
fi

step "Summary"
[ "${#skips[@]}" = 0 ] || printf 'skipped: %s\n' "${skips[@]}"
[ "${#failures[@]}" = 0 ] || printf 'failed: %s\n' "${failures[@]}"
echo "$passed passed, $failed failed, $ignored skipped"
[ $((passed + failed + ignored)) != 0 ] || { echo "test: no test's name holds $name" >&2; exit 1; }
[ "$failed" = 0 ]
