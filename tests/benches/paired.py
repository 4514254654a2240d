#!/usr/bin/env python3
"""Times `plywood apply` against public tools, in pairs, on the corpora of corpora.py.

    tests/benches/paired.py [--corpora DIR] [--plywood BIN] [--pairs N] [--suite LIST]
                            [--json FILE] [--gate] [CORPUS ...]

One pair is A B, the next B A, so that a machine that slows down or speeds up meanwhile hurts
both alike. Both read the same input file from the page cache and write to the same directory;
neither syncs. Ours also hashes (blob digest and diffID), which none of the peers does.
Figures are medians with min..max; a ratio is ours / peer, below 1 is faster or smaller.

  suite   input            peer
  gzip    NAME.tar.gz      gzip -dc NAME.tar.gz | mkfs.erofs --tar=f ... OUT
  off     NAME.tar.gz      the same; ours with --decode-ahead=off
  zstd    NAME.tar.zst     zstd -dc NAME.tar.zst | mkfs.erofs --tar=f ... OUT
  plain   NAME.tar         mkfs.erofs --tar=f ... OUT < NAME.tar
  wide    wide-N.tar       the same, up to 200 000 entries (mkfs.erofs is quadratic in them)
  growth  synth-N.tar      the same
  stream  generated        none: 1 and 4 GiB from a pipe, for the peak of memory
  native  an image of ours cp IMAGE OUT, and zstd -dc IMAGE.zst > OUT
  igzip   NAME.tar.gz      igzip -dc NAME.tar.gz > /dev/null: decoding alone
  ahead   NAME.tar.gz      ours with --decode-ahead=off
  members NAME.esgz        the same, and in order on one processor: NAME:1. Also NAME.frames.zst

The options of mkfs.erofs are the ones containerd's differ passes (its fixed ones, then the
mkfs_options that its documentation recommends): --tar=f --aufs --quiet -Enoinline_data -b4096
-T0 --mkfs-time --sort=none -U UUID. mkfs.erofs is taken from $PLYWOOD_TOOLS/bin
(integration/setup/tools.sh), else from PATH.

CPU is user + system time of all processes (wait4), memory the largest resident set of any one
process. The kernel counts what a process was before its exec, which is this script: a figure
below this script's own size is therefore an upper bound, and shown with "<". Python's standard
library only.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid

BIG = ["minbase", "pydata", "node", "cuda", "tf"]
SMALL = ["whiteout", "tiny"]
SUITES = ["gzip", "off", "zstd", "plain", "wide", "growth", "stream", "native", "igzip", "ahead", "members"]
# Where helpers decode ahead, and have memory of their own.
AHEAD = ["gzip", "zstd", "igzip", "ahead", "members"]
MIB = 1 << 20
# Above this many names in one directory mkfs.erofs takes minutes.
WIDEST_PEER = 200_000


class Failed(Exception):
    """A command of a measured pipeline did not succeed."""


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


# --- measuring -------------------------------------------------------------------------------


def execute(commands, stdin=None, stdout=None, measured=None):
    """Runs a pipeline; returns its wall seconds, CPU seconds and peak bytes of the largest process.

    `measured` is the index of the only command whose CPU and memory count (default: all).
    """
    processes = []
    with tempfile.TemporaryFile() as errors:
        source = open(stdin, "rb") if stdin else subprocess.DEVNULL
        sink = open(stdout, "wb") if stdout else subprocess.DEVNULL
        start = time.perf_counter()
        for index, command in enumerate(commands):
            last = index == len(commands) - 1
            process = subprocess.Popen(command, stdin=source, stderr=errors,
                                       stdout=sink if last else subprocess.PIPE)
            if source is not subprocess.DEVNULL:
                source.close()
            source = process.stdout
            processes.append(process)
        cpu, peak, bad = 0.0, 0, []
        for index, process in enumerate(processes):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                bad.append(f"{process.args[0]} ended with {process.returncode}")
            if measured in (None, index):
                cpu += usage.ru_utime + usage.ru_stime
                peak = max(peak, usage.ru_maxrss * 1024)
        wall = time.perf_counter() - start
        if sink is not subprocess.DEVNULL:
            sink.close()
        if bad:
            errors.seek(0)
            raise Failed("; ".join(bad) + ": " + errors.read().decode(errors="replace").strip()[-500:])
    return {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak}


def sha256(file):
    with open(file, "rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


class Side:
    """One of the two contestants: a pipeline, and the files it leaves."""

    def __init__(self, commands, *outs, **pipeline):
        self.commands, self.outs, self.pipeline = commands, outs, pipeline
        self.samples, self.size_bytes = [], None

    def once(self):
        for out in self.outs:
            out.unlink(missing_ok=True)
        self.samples.append(execute(self.commands, **self.pipeline))
        self.size_bytes = sum(out.stat().st_size for out in self.outs)
        for out in self.outs:
            out.unlink()

    def summary(self):
        def spread(key):
            values = [sample[key] for sample in self.samples]
            return {"median": median(values), "min": min(values), "max": max(values)}
        return {"wall_s": spread("wall_s"), "cpu_s": spread("cpu_s"),
                "peak_bytes": max(s["peak_bytes"] for s in self.samples), "size_bytes": self.size_bytes,
                "command": " | ".join(" ".join([pathlib.Path(c[0]).name, *c[1:]]) for c in self.commands)}


def pair(ours, peer, pairs, files):
    for file in files:  # into the page cache, for both
        with open(file, "rb") as stream:
            while stream.read(MIB // 4):
                pass
    for side in filter(None, (ours, peer)):  # one unmeasured run: programs and directories warm
        side.once()
        side.samples.clear()
    for index in range(pairs):
        order = (ours, peer) if index % 2 == 0 else (peer, ours)
        for side in filter(None, order):
            side.once()
    row = {"ours": ours.summary(), "peer": peer and peer.summary()}
    if peer:
        row["ratio"] = {
            key: median(a[key] / max(b[key], 1e-9) for a, b in zip(ours.samples, peer.samples))
            for key in ("wall_s", "cpu_s")}
        row["ratio"]["size_bytes"] = ours.size_bytes / peer.size_bytes if peer.size_bytes else None
    return row


# --- suites ----------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.corpora = arguments.corpora
        self.manifest = json.loads((self.corpora / "corpora.json").read_text())
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="plywood-bench-", dir=arguments.work))
        self.tools = tools("mkfs.erofs", "fsck.erofs", "gzip", "zstd", "strace", "igzip", "pigz")
        self.plywood = str(arguments.plywood)
        self.rows, self.skipped = [], []

    def need(self, *names):
        missing = [name for name in names if not self.tools[name]]
        if missing:
            raise LookupError(f"needs {', '.join(missing)} (integration/setup/tools.sh unpacks erofs-utils)")

    def mkfs(self, out, digest):
        name = str(uuid.uuid5(uuid.NAMESPACE_URL, "erofs:blobs/sha256:" + digest))
        return [self.tools["mkfs.erofs"], "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096",
                "-T0", "--mkfs-time", "--sort=none", "-U", name, str(out)]

    def apply(self, layer, out, *more):
        return [self.plywood, "apply", *self.arguments.option, *more, str(layer), "-o", str(out)]

    def add(self, suite, corpus, ours, peer, files):
        # A run of milliseconds needs more pairs for a steady median, and costs nothing.
        pairs = self.arguments.pairs * (4 if corpus.partition(".")[0] in SMALL else 1)
        row = {"suite": suite, "corpus": corpus, "entries": self.manifest.get(corpus, {}).get("entries"),
               "bytes_in": sum(os.path.getsize(f) for f in files), "pairs": pairs,
               **pair(ours, peer, pairs, files)}
        self.rows.append(row)
        print(line(row), flush=True)

    def layer(self, suite, corpus):
        form = {"gzip": "tar.gz", "off": "tar.gz", "zstd": "tar.zst"}.get(suite, "tar")
        file = self.corpora / f"{corpus}.{form}"
        digest = self.manifest[corpus]["forms"][form]["sha256"]
        off = ["--decode-ahead=off"] if suite == "off" else []
        ours = Side([self.apply(file, self.work / "a.erofs", *off)], self.work / "a.erofs")
        out = self.work / "b.erofs"
        too_wide = suite == "wide" and self.manifest[corpus]["entries"] > WIDEST_PEER
        if too_wide:
            peer = None
        elif form == "tar":
            self.need("mkfs.erofs")
            peer = Side([self.mkfs(out, digest)], out, stdin=file)
        elif form == "tar.gz":
            self.need("mkfs.erofs")
            decoder = self.arguments.gunzip.split()
            peer = Side([[*decoder, str(file)], self.mkfs(out, digest)], out)
        else:
            self.need("mkfs.erofs", "zstd")
            peer = Side([[self.tools["zstd"], "-dc", "-q", str(file)], self.mkfs(out, digest)], out)
        self.add(suite, corpus, ours, peer, [file])

    def igzip(self, corpus):
        self.need("igzip")
        file, out = self.corpora / f"{corpus}.tar.gz", self.work / "a.erofs"
        ours = Side([self.apply(file, out)], out)
        self.add("igzip", corpus, ours, Side([[self.tools["igzip"], "-dc", str(file)]]), [file])

    def ahead(self, corpus):
        file, out = self.corpora / f"{corpus}.tar.gz", self.work / "a.erofs"
        ours = Side([self.apply(file, out)], out)
        self.add("ahead", corpus, ours, Side([self.apply(file, out, "--decode-ahead=off")], out), [file])

    def members(self, corpus):
        out = self.work / "a.erofs"
        for form in ("esgz", "frames.zst"):
            file = self.corpora / f"{corpus}.{form}"
            if not file.exists():
                raise LookupError(f"no {file.name} (tests/benches/corpora.py --indexed makes it)")
            in_order = self.apply(file, out, "--decode-ahead=off")
            self.add("members", f"{corpus}.{form}", Side([self.apply(file, out)], out), Side([in_order], out), [file])
            if shutil.which("taskset"):
                one = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *in_order]
                self.add("members", f"{corpus}.{form}:1", Side([self.apply(file, out)], out), Side([one], out), [file])

    def stream(self):
        """Layers that are never a file: one member of N GiB, produced while it is read."""
        for gib in (1, 4):
            out = self.work / "stream.erofs"
            generator = [sys.executable, __file__, "--generate", str(gib << 30)]
            ours = Side([generator, self.apply("-", out)], out, measured=1)
            self.add("stream", f"{gib} GiB", ours, None, [])

    def native(self, corpus):
        """An EROFS layer published as it is: by the kernel's copy when plain, decoded when zstd.

        Both with the digest that a descriptor would bring.
        A blob of unknown digest is read as a stream.
        """
        self.need("zstd")
        image, packed = self.work / "native.erofs", self.work / "native.erofs.zst"
        execute([self.apply(self.corpora / f"{corpus}.tar", image)])
        execute([[self.tools["zstd"], "-3", "-q", "-f", "-o", str(packed), str(image)]])
        kind = "application/vnd.erofs.layer.v1"
        out = self.work / "a.erofs"
        other = self.work / "b.erofs"
        plain = self.apply(image, out, "--media-type", kind, "--digest", sha256(image))
        peer = Side([["cp", str(image), str(other)]], other)
        self.add("native", f"{corpus} plain", Side([plain], out), peer, [image])
        self.rows[-1]["copied_by_user_bytes"] = self.user_copies(plain, out)
        peer = Side([[self.tools["zstd"], "-dc", "-q", str(packed)]], other, stdout=other)
        coded = self.apply(packed, out, "--media-type", kind + "+zstd", "--digest", sha256(packed))
        self.add("native", f"{corpus} +zstd", Side([coded], out), peer, [packed])

    def user_copies(self, command, out):
        """Bytes of data that went through a write call, or None without strace."""
        if not self.tools["strace"]:
            return None
        trace = self.work / "trace"
        out.unlink(missing_ok=True)
        execute([[self.tools["strace"], "-f", "-qq", "-o", str(trace), "-e",
                  "trace=write,pwrite64,writev,pwritev,pwritev2", *command]])
        return sum(int(n) for n in re.findall(r"= (\d+)$", trace.read_text(), re.M) if int(n) >= 4096)

    def run(self):
        wanted = self.arguments.names

        def each(suite, names):
            for name in names:
                if wanted and name not in wanted:
                    continue
                try:
                    if name not in self.manifest:
                        raise LookupError("no such corpus (tests/benches/corpora.py makes it)")
                    own = {"native": self.native, "igzip": self.igzip, "ahead": self.ahead,
                           "members": self.members}.get(suite)
                    own(name) if own else self.layer(suite, name)
                except (LookupError, Failed, OSError) as error:
                    self.skip(f"{suite} {name}", error)

        for suite in self.arguments.suite:
            known = sorted(self.manifest, key=lambda name: self.manifest[name]["entries"])
            if suite in ("gzip", "zstd", "plain"):
                each(suite, BIG + SMALL)
            elif suite in ("off", "igzip", "ahead"):
                each(suite, BIG)
            elif suite == "members":
                each(suite, BIG + SMALL)
            elif suite == "wide":
                each(suite, [name for name in known if name.startswith("wide-")])
            elif suite == "growth":
                each(suite, [name for name in known if name.startswith("synth-")])
            elif suite == "native":
                each(suite, ["minbase", "pydata"])
            elif not wanted or "stream" in wanted:
                try:
                    self.stream()
                except (Failed, OSError) as error:
                    self.skip("stream", error)

    def skip(self, what, error):
        self.skipped.append(f"{what}: {error}")
        print(f"{what}: skipped: {error}", flush=True)


# --- bars ------------------------------------------------------------------------------------


def geomean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def bars(rows):
    """Every bar as (name, what, value, limit); value None when it was not measured."""
    by = {(row["suite"], row["corpus"]): row for row in rows}

    def ratios(suite, names, key):
        found = [by[suite, name] for name in names if (suite, name) in by]
        return [row["ratio"][key] for row in found if row["peer"]] if len(found) == len(names) else []

    def cpu(suite, corpus):
        row = by.get((suite, corpus))
        return row and row["ours"]["cpu_s"]["median"]

    gzip = ratios("gzip", BIG, "wall_s")
    yield "P1", "tar.gz, wall, geomean of the five", geomean(gzip), 0.24
    yield "P1b", "tar.gz, wall, worst of the five", max(gzip, default=None), 0.35
    yield "P2", "tar.gz, CPU, geomean of the five, decode-ahead off", geomean(ratios("off", BIG, "cpu_s")), 0.33
    yield "P2", "the same, decode-ahead on", geomean(ratios("gzip", BIG, "cpu_s")), 0.60
    yield "P16", "tar.gz, wall against igzip -dc, geomean of the five", geomean(ratios("igzip", BIG, "wall_s")), 1.20
    members = {row["corpus"]: row["ratio"]["wall_s"] for row in rows if row["suite"] == "members"}
    in_order = [members.get(f"{name}.esgz") for name in ("pydata", "cuda")]
    yield "P19", "eStargz of 500 MB, wall against decode-ahead off, worst", max(in_order) if all(in_order) else None, 0.75
    one = [members.get(f"{name}.esgz:1") for name in ("pydata", "cuda")]
    yield "P19", "eStargz of 500 MB, wall against one processor, worst", max(one) if all(one) else None, 0.75
    small = [ratio for name, ratio in members.items() if name.split(".")[0] in ("minbase", *SMALL) and ":" not in name]
    yield "P20", "small layers of members or frames, wall against decode-ahead off", max(small, default=None), 1.05
    # 64 MiB and 24 MiB for each helper, of which there is one less than there are processors, and four at most.
    ahead = [row["ours"]["peak_bytes"] for row in rows if row["suite"] in AHEAD]
    most = 64 + 24 * min(4, len(os.sched_getaffinity(0)) - 1)
    yield "P18", "peak memory with decode-ahead, MiB", max(ahead, default=0) / MIB or None, most
    yield "P5", "tar.zst, wall, geomean of the five", geomean(ratios("zstd", BIG, "wall_s")), 0.95
    yield "P6", "plain tar, wall, node and whiteout", max(ratios("plain", ["node", "whiteout"], "wall_s"), default=None), 0.40
    others = ["minbase", "pydata", "cuda", "tf"]
    yield "P6", "plain tar, wall, worst of the others", max(ratios("plain", others, "wall_s"), default=None), 1.5
    yield "P7", "one directory of 100 000, CPU", max(ratios("wide", ["wide-100000"], "cpu_s"), default=None), 0.05
    yield "P7", "one directory of 1 000 000, CPU s", cpu("wide", "wide-1000000"), 2.5
    small, large = by.get(("growth", "synth-10000")), by.get(("growth", "synth-1000000"))
    growth = None
    if small and large:
        growth = (cpu("growth", "synth-1000000") / large["entries"]) / (cpu("growth", "synth-10000") / small["entries"])
    yield "P8", "CPU per entry, 1 000 000 against 10 000", growth, 1.3
    # 48 MiB + 200 bytes per entry, as a share of that allowance.
    measured = [row for row in rows if row["entries"] and row["suite"] not in AHEAD]
    shares = [row["ours"]["peak_bytes"] / (48 * MIB + 200 * row["entries"]) for row in measured]
    yield "P9", "peak memory / (48 MiB + 200 B per entry), worst", max(shares, default=None), 1.0
    yield "P9", "peak memory of synth-1000000, MiB", large and large["ours"]["peak_bytes"] / MIB, 250
    one, four = by.get(("stream", "1 GiB")), by.get(("stream", "4 GiB"))
    yield ("P9", "peak memory of a 4 GiB stream, MiB over that of 1 GiB",
           one and four and (four["ours"]["peak_bytes"] - one["ours"]["peak_bytes"]) / MIB, 4)
    yield "P9", "peak memory of a 4 GiB stream, MiB", four and four["ours"]["peak_bytes"] / MIB, 48
    plain = [row["copied_by_user_bytes"] for row in rows if row.get("copied_by_user_bytes") is not None]
    yield "P15", "native layer, bytes written by user space", max(plain, default=None), 0
    packed = [row["ratio"]["wall_s"] for row in rows if row["corpus"].endswith("+zstd")]
    yield "P15", "native +zstd, wall against zstd -dc > file, worst", max(packed, default=None), 1.1


# --- showing ---------------------------------------------------------------------------------


HEAD = (f"{'suite':7} {'corpus':15} {'wall s':>19} {'cpu s':>6} {'MiB':>6} {'out MB':>8}   "
        f"{'peer wall s':>19} {'cpu s':>6} {'MiB':>6} {'out MB':>8}   {'wall':>6} {'cpu':>6} {'size':>6}")


def line(row):
    def side(s):
        if not s:
            return f"{'-':>19} {'-':>6} {'-':>6} {'-':>8}"
        wall = s["wall_s"]
        text = f"{wall['median']:.3f} ({wall['min']:.2f}..{wall['max']:.2f})"
        bound = "<" if s["peak_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 else ""
        peak = f"{bound}{s['peak_bytes'] / MIB:.0f}"
        return f"{text:>19} {s['cpu_s']['median']:6.2f} {peak:>6} {s['size_bytes'] / 1e6:8.1f}"
    ratio = row.get("ratio")
    size = ratio and ratio["size_bytes"]
    tail = f"{ratio['wall_s']:6.2f} {ratio['cpu_s']:6.2f} {f'{size:.2f}' if size else '-':>6}" if ratio else ""
    return f"{row['suite']:7} {row['corpus']:15} {side(row['ours'])}   {side(row['peer'])}   {tail}".rstrip()


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.M)
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return {"cpu": model.group(1) if model else os.uname().machine, "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(int(memory.group(1)) / 2**20), "kernel": os.uname().release.split("-")[0],
            "system": platform.freedesktop_os_release().get("PRETTY_NAME"), "load": os.getloadavg()[0]}


def commit():
    """The commit of the checkout that this script is in; None outside of one."""
    shown = subprocess.run(["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--abbrev=40",
                            "--exclude=*", "--dirty"], capture_output=True, text=True)
    return shown.stdout.strip() or None


def tools(*names):
    """Where each program is, or None."""
    extra = os.environ.get("PLYWOOD_TOOLS")
    path = (f"{extra}/bin:" if extra else "") + os.environ["PATH"]
    return {name: shutil.which(name, path=path) for name in names}


def versions(bench):
    found = {}
    for name, path in {"plywood": bench.plywood, **bench.tools}.items():
        if path:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True)
            text = (shown.stdout + shown.stderr).strip()
            found[name] = text.splitlines()[0] if text else "?"
        else:
            found[name] = None
    return found


def generate(size):
    """A plain tar of one file: stretches of noise, of text and of zeros, from a pipe's point of view endless."""
    import random
    noise = random.Random(1).randbytes(MIB)
    stretches = [noise, (b"plywood " * (MIB // 8)), bytes(MIB)]
    header = bytearray((b"stream.bin".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 +
                        b"\x80" + size.to_bytes(11, "big") + b"00000000000\0        0").ljust(257, b"\0") +
                       b"ustar\x0000".ljust(255, b"\0"))
    header[148:156] = b"%06o\0 " % sum(header)
    out = sys.stdout.buffer
    out.write(header)
    for index in range(size // MIB):
        out.write(stretches[index % 3])
    out.write(bytes(1024))


# --- what the benches have in common -------------------------------------------------------


def common_arguments(parser):
    parser.add_argument("--corpora", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("PLYWOOD_CORPORA", "target/corpora")))
    parser.add_argument("--plywood", type=pathlib.Path, default=pathlib.Path("target/release/plywood"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target"), help="where outputs are written")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="write every figure there")
    parser.add_argument("--gate", action="store_true", help="end with 1 when a bar is missed or not measured")
    parser.add_argument("names", nargs="*", metavar="CORPUS")


def parse(parser, suites):
    """The arguments, once it is sure that they can be followed."""
    arguments = parser.parse_args()
    unknown = set(arguments.suite) - set(suites)
    if unknown:
        parser.error(f"no suite {', '.join(sorted(unknown))}")
    if not shutil.which(str(arguments.plywood)):
        parser.error(f"{arguments.plywood} is not there: cargo build --release, or name one with --plywood")
    if not (arguments.corpora / "corpora.json").exists():
        parser.error(f"no corpora in {arguments.corpora}: tests/benches/corpora.py makes them")
    arguments.plywood = arguments.plywood.resolve()
    return arguments


def introduce(bench):
    """Prints what is measured where, and the head of the table; returns it."""
    about = {"bench": pathlib.Path(sys.argv[0]).name, "pairs": bench.arguments.pairs, "suites": bench.arguments.suite,
             "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(),
             "machine": machine(), "versions": versions(bench)}
    print("machine:", ", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    for name, version in about["versions"].items():
        print(f"{name}: {version or 'missing'}")
    print(HEAD)
    return about


def keep(arguments, about, bench, results):
    """Writes every figure to the file that --json names; docs/performance/README.md describes it."""
    if arguments.json:
        report = {**about, "rows": bench.rows, "bars": results, "skipped": bench.skipped}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def judge(bars):
    """Prints how the bars were met; whether one was missed or not measured, and all of them."""
    missed = False
    results = []
    for bar, what, value, limit in bars:
        verdict = "not measured" if value is None else "pass" if value <= limit else "MISSED"
        missed |= verdict != "pass"
        results.append({"bar": bar, "what": what, "value": value, "limit": limit, "verdict": verdict})
        shown = "-" if value is None else f"{value:.3f}"
        print(f"{bar:4} {what:52} {shown:>9} <= {limit:<6} {verdict}")
    return missed, results


def conduct(bench, bars, show=lambda rows: None):
    """Runs a bench from its table to its bars, and ends the program; `show` prints what stands between the two."""
    about = introduce(bench)
    try:
        bench.run()
    finally:
        shutil.rmtree(bench.work, ignore_errors=True)
    show(bench.rows)
    missed, results = judge(bars(bench.rows))
    keep(bench.arguments, about, bench, results)
    sys.exit(1 if bench.arguments.gate and missed else 0)


def means(all_rows):
    for suite in ("gzip", "off", "zstd", "plain"):
        rows = [row for row in all_rows if row["suite"] == suite and row["corpus"] in BIG and row["peer"]]
        if rows:
            mean = {key: geomean(row["ratio"][key] for row in rows) for key in ("wall_s", "cpu_s", "size_bytes")}
            print(f"{suite}: geomean of {len(rows)} big corpora: wall {mean['wall_s']:.3f}, "
                  f"cpu {mean['cpu_s']:.3f}, size {mean['size_bytes']:.3f}")


def main():
    if sys.argv[1:2] == ["--generate"]:
        return generate(int(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser)
    parser.add_argument("--suite", type=lambda text: text.split(","), default=SUITES, help=",".join(SUITES))
    parser.add_argument("--gunzip", default="gzip -dc", help='the peer\'s decoder, e.g. "igzip -dc" (default: gzip -dc)')
    parser.add_argument("--option", action="append", default=[], help="an option more for plywood apply, e.g. --option=--inline-limit=0")
    arguments = parse(parser, SUITES)
    conduct(Bench(arguments), bars, means)


if __name__ == "__main__":
    main()
