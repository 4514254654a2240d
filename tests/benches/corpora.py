#!/usr/bin/env python3
"""Makes the layers that the benchmarks and the tree oracle run on.

    tests/benches/corpora.py [--out DIR] [--force] [--indexed] [NAME ...]

Every corpus is NAME.tar: PAX, members sorted, numeric owners, build times clamped to one
fixed moment. Package corpora also come as NAME.tar.gz (gzip -6 -n) and NAME.tar.zst (zstd -3), as
NAME.esgz (eStargz: a gzip member for each file and each 4 MiB of one, level 9, a table of contents)
and as NAME.frames.zst (zstd -3, a frame for each MiB); synth-N and wide-N, which measure the image
builder alone, stay plain.

  minbase      Debian bookworm's smallest root plus ping (a file with a capability)   needs root, debootstrap
  node         a node_modules tree of about 100 000 files                             needs npm
  pydata       numpy, scipy, pandas, matplotlib, scikit-learn and their .pyc          needs pip
  tf           tensorflow-cpu: one file of several hundred megabytes, 10 000 headers  needs pip
  cuda         nvidia-cublas: two huge files that hardly compress                     needs pip
  whiteout     what an overlay upper over node may hold: deletions, opaque directories,
               copies, xattrs, hard links, a fifo                                     needs node
  tiny         three files
  synth-N      N entries, 100 per directory, 0 to 2 KiB each
  wide-N       N empty files in one directory

Versions are pinned, so two runs give the same bytes, with two exceptions: minbase follows
Debian's point releases (the mirror is the one of this host's own apt sources), and the .pyc
of pydata depend on the Python that runs this script.

Python's standard library, GNU tar, gzip and zstd. Up to 10 GB of disk while it runs.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import struct
import sys
import tarfile
import zlib

# The moment all times are clamped to: 2025-06-01T00:00:00Z.
EPOCH = 1748736000
DEFAULT = ["minbase", "node", "pydata", "tf", "cuda", "whiteout", "tiny",
           "synth-10000", "synth-100000", "synth-1000000", "wide-100000", "wide-1000000"]

# A range, resolved by npm to the newest version before the moment above, is as good as a pin.
NODE_PACKAGES = """
    react-scripts@5.0.1 next@15 webpack@5 webpack-cli@6 typescript@5.8 eslint@8.57.1
    @mui/material@7 @mui/icons-material@7 @emotion/react@11 @emotion/styled@11
    aws-sdk@2 date-fns@4 lodash@4.17.21 lodash-es@4.17.21 rxjs@7 three@0.176 jest@29.7.0
    @angular/core@19 @tabler/icons@3 core-js@3 react-icons@5 antd@5
""".split()

PYDATA_PACKAGES = """
    numpy==2.2.6 scipy==1.15.3 pandas==2.2.3 matplotlib==3.10.3 scikit-learn==1.6.1 contourpy==1.3.2
    cycler==0.12.1 fonttools==4.58.1 kiwisolver==1.4.8 packaging==25.0 pillow==11.2.1 pyparsing==3.2.3
    python-dateutil==2.9.0.post0 pytz==2025.2 six==1.17.0 tzdata==2025.2 joblib==1.5.1 threadpoolctl==3.6.0
""".split()
TF_PACKAGES = ["tensorflow-cpu==2.19.0"]
CUDA_PACKAGES = ["nvidia-cublas-cu12==12.4.5.8"]


class Missing(Exception):
    """A corpus cannot be made here; the message says what it lacks."""


def run(*command, **options):
    subprocess.run([str(word) for word in command], check=True, **options)


def need(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            raise Missing(f"needs {tool}")


# --- corpora made of a directory -------------------------------------------------------------


def pack(tree, out, *, keep_owners=False):
    """Writes `tree` as a sorted PAX archive whose bytes depend on its contents alone."""
    owners = [] if keep_owners else ["--owner=0", "--group=0"]
    run("tar", "--create", "--file", out, "--directory", tree, "--format=posix", "--sort=name",
        "--numeric-owner", *owners, f"--mtime=@{EPOCH}", "--clamp-mtime",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
        "--xattrs", "--xattrs-include=*", ".")


def debian_mirror():
    """The first archive in this host's own apt sources, of either spelling."""
    etc = pathlib.Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for file in (f for f in files if f.is_file()):
        text = file.read_text(errors="replace")
        for stanza in re.split(r"\n\s*\n", text):
            lines = [l for l in stanza.splitlines() if not l.lstrip().startswith("#")]
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", "\n".join(lines), re.M))
            if "deb" in fields.get("Types", "").split() and "main" in fields.get("Components", "").split():
                if any("security" not in suite for suite in fields.get("Suites", "").split()):
                    return fields["URIs"].split()[0]
        for line in text.splitlines():
            found = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", line)
            if found and "security" not in found.group(2):
                return found.group(1)
    raise Missing("needs a Debian archive in /etc/apt/sources.list or sources.list.d")


def minbase(work, out):
    need("debootstrap")
    if os.geteuid() != 0:
        raise Missing("needs root (debootstrap)")
    root = work / "root"
    run("debootstrap", "--variant=minbase", "--include=iputils-ping", "bookworm", root, debian_mirror(),
        stdout=subprocess.DEVNULL)
    # What depends on the host or the moment rather than on the packages.
    for name in ["etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/apt/sources.list",
                 "var/cache/ldconfig/aux-cache"]:
        (root / name).unlink(missing_ok=True)
    for name in ["var/log", "var/cache/apt", "var/lib/apt/lists"]:
        for child in (root / name).iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    for name in ["etc/shadow", "etc/shadow-"]:
        file = root / name
        if file.exists():  # the third field is the day the password was changed: today
            file.write_text(re.sub(r"^([^:]*:[^:]*:)\d+", rf"\g<1>{EPOCH // 86400}", file.read_text(), flags=re.M))
    pack(root, out, keep_owners=True)


def node(work, out):
    need("npm")
    (work / "package.json").write_text('{"private": true}\n')
    run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--no-save",
        "--no-package-lock", "--before=2025-06-01T00:00:00Z", "--os=linux", "--cpu=x64", "--libc=glibc",
        "--loglevel=error", f"--cache={work / 'cache'}", *NODE_PACKAGES, cwd=work, stdout=subprocess.DEVNULL)
    tree = work / "tree" / "app"
    tree.mkdir(parents=True)
    # npm's own note of where each package came from is about this machine, not about the tree.
    (work / "node_modules" / ".package-lock.json").unlink(missing_ok=True)
    (work / "node_modules").rename(tree / "node_modules")
    pack(work / "tree", out)


def wheels(work, out, packages, *, compiled=False):
    tree = work / "tree"
    site = tree / "usr/lib/python3/site-packages"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-cache-dir",
        "--root-user-action=ignore",
        "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3",
        "--abi=none", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64",
        "--platform=manylinux_2_28_x86_64", "--platform=any", "--target", site, *packages)
    if compiled:
        # Hash-based: a .pyc that names its source's time would differ from run to run.
        run(sys.executable, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash",
            "-s", tree, "-p", "/", site, stdout=subprocess.DEVNULL)
    pack(tree, out)


# --- corpora made of nothing -----------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, size=0, mode=0o644, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.mtime = kind, size, mode, EPOCH
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tiny(_work, out):
    import io
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("etc", tarfile.DIRTYPE, mode=0o755))
        for name, text in [("etc/hostname", b"tiny\n"), ("etc/motd", b"three files make a layer\n")]:
            tar.addfile(member(name, size=len(text)), io.BytesIO(text))
        tar.addfile(member("etc/issue", tarfile.SYMTYPE, mode=0o777, linkname="motd"))


def whiteout(_work, out):
    """An upper directory over node: a fixed choice by name, so that the same tree gives the same layer."""
    import io
    base = out.parent / "node.tar"
    if not base.exists():
        raise Missing("needs the corpus node")

    def chance(name, salt):
        return int.from_bytes(hashlib.sha256((salt + name).encode()).digest()[:4], "big") / 2**32

    entries = []  # (name, info, content)
    with tarfile.open(base) as tar:
        opaque, linked = set(), None
        for info in tar:
            name = info.name.removeprefix("./").rstrip("/")
            if name in ("", ".") or any(part.startswith(".wh.") for part in name.split("/")):
                continue
            parent, _, leaf = name.rpartition("/")
            if info.isdir():
                if parent in opaque:
                    continue
                entries.append((name, member(name, tarfile.DIRTYPE, mode=info.mode), b"") if chance(name, "keep") < 0.35 else None)
                if chance(name, "opaque") < 0.01:
                    opaque.add(name)
                    mark = f"{name}/.wh..wh..opq"
                    entries.append((mark, member(mark, mode=0o600), b""))
            elif parent in opaque:
                continue
            elif chance(name, "delete") < 0.135:
                mark = f"{parent}/.wh.{leaf}"
                entries.append((mark, member(mark, mode=0o600), b""))
            elif info.isreg() and info.size < 64 * 1024 and chance(name, "copy") < 0.03:
                content = tar.extractfile(info).read()
                copied = member(name, size=len(content), mode=info.mode, uid=1000, gid=1000)
                if chance(name, "xattr") < 0.2:
                    copied.pax_headers = {"SCHILY.xattr.user.mime_type": "text/javascript",
                                          "SCHILY.xattr.user.origin": hashlib.sha1(name.encode()).hexdigest()}
                entries.append((name, copied, content))
                if chance(name, "link") < 0.05:
                    linked = name + ".linked"
                    entries.append((linked, member(linked, tarfile.LNKTYPE, linkname=name), b""))
    entries.append(("run/fifo", member("run/fifo", tarfile.FIFOTYPE, mode=0o600), b""))
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, info, content in sorted(filter(None, entries), key=lambda e: e[0].split("/")):
            tar.addfile(info, io.BytesIO(content))


def ustar_header(name, size, mode, kind):
    """One ustar header; tarfile takes ten times as long, which counts at a million entries."""
    field = b"%-100s%07o\0%07o\0%07o\0%011o\0%011o\0        %c" % (name.ljust(100, b"\0"), mode, 0, 0, size, EPOCH, kind)
    header = bytearray(field.ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def synth(out, count):
    """`count` entries below 100-entry directories; sizes and contents from a seeded generator."""
    rng = random.Random(20250601)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(4096)]
    text = b" ".join(rng.choices(words, k=1 << 18))
    with open(out, "wb", buffering=1 << 20) as tar:
        directory = b""
        for index in range(count):
            if index % 100 == 0:
                directory = b"d%03d/e%04d" % (index // 100000, index // 100 % 1000)
                if index % 100000 == 0:
                    tar.write(ustar_header(b"d%03d/" % (index // 100000), 0, 0o755, ord("5")))
                tar.write(ustar_header(directory + b"/", 0, 0o755, ord("5")))
            size = rng.randrange(2049)
            start = rng.randrange(len(text) - size)
            tar.write(ustar_header(b"%s/file%07d.txt" % (directory, index), size, 0o644, ord("0")))
            tar.write(text[start:start + size] + bytes(-size % 512))
        tar.write(bytes(1024))


def wide(out, count):
    with open(out, "wb", buffering=1 << 20) as tar:
        tar.write(ustar_header(b"wide/", 0, 0o755, ord("5")))
        for index in range(count):
            tar.write(ustar_header(b"wide/file%07d" % index, 0, 0o644, ord("0")))
        tar.write(bytes(1024))


# --- all of them -----------------------------------------------------------------------------


def make(name, work, out):
    found = re.fullmatch(r"(synth|wide)-([1-9]\d*)", name)
    if found:
        {"synth": synth, "wide": wide}[found.group(1)](out, int(found.group(2)))
    elif name == "pydata":
        wheels(work, out, PYDATA_PACKAGES, compiled=True)
    elif name in ("tf", "cuda"):
        wheels(work, out, {"tf": TF_PACKAGES, "cuda": CUDA_PACKAGES}[name])
    elif name in ("minbase", "node", "whiteout", "tiny"):
        {"minbase": minbase, "node": node, "whiteout": whiteout, "tiny": tiny}[name](work, out)
    else:
        raise Missing("is not a corpus; see --help")


def measure(tar):
    """Entries by kind, counted from the archive's own headers, and digests of every form."""
    counts = {"entries": 0, "files": 0, "whiteouts": 0}
    with tarfile.open(tar) as archive:
        for info in archive:
            counts["entries"] += 1
            if info.name.rpartition("/")[2].startswith(".wh."):
                counts["whiteouts"] += 1
            elif info.isreg():
                counts["files"] += 1
            archive.members = []  # a million TarInfo are a gigabyte
    forms = {}
    for form in ("tar", "tar.gz", "tar.zst", "esgz", "frames.zst"):
        file = tar.with_suffix("." + form)
        if file.exists():
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            forms[form] = {"bytes": file.stat().st_size, "sha256": digest}
    return {**counts, "forms": forms}


def compress(tar):
    plain = re.match(r"(synth|wide)-", tar.name)
    for suffix, command in [] if plain else [(".gz", ["gzip", "-6", "-n", "-c"]), (".zst", ["zstd", "-3", "-q", "-c"])]:
        part = tar.with_suffix(tar.suffix + suffix + ".part")
        with open(tar, "rb") as source, open(part, "wb") as sink:
            run(*command, stdin=source, stdout=sink)
        part.rename(part.with_suffix(""))
    if not plain:
        add_indexed(tar)


def add_indexed(tar):
    for suffix, write in [(".esgz", estargz), (".frames.zst", frames)]:
        out = tar.with_suffix(suffix)
        if not out.exists():
            part = tar.with_suffix(suffix + ".part")
            write(tar, part)
            part.rename(out)


# --- forms with many members or frames --------------------------------------------------------

CHUNK = 4 << 20
FRAME = 1 << 20


def in_order(work, items):
    """The results of `work` in the order of `items`, of which few are under way at a time."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        under_way = collections.deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > 2 * (os.cpu_count() or 1):
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def pieces(tar):
    """Cuts an archive where the data of a file begins, and every CHUNK of it: (bytes, file, offset in the file)."""
    with tarfile.open(tar) as archive, open(tar, "rb") as stream:
        begun = (None, 0)
        for info in archive:
            archive.members = []
            for offset in range(0, info.size if info.isreg() else 0, CHUNK):
                yield stream.read(info.offset_data + offset - stream.tell()), *begun
                begun = (info, offset)
        # The zero blocks come behind the table of contents.
        yield stream.read(archive.offset - stream.tell()), *begun


def member(data):
    """What Go's compress/gzip makes of it at level 9, at which eStargz is written."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + body + struct.pack("<II", zlib.crc32(data), len(data) % (1 << 32))


def estargz(tar, out):
    """Writes an archive as eStargz. The table has what a reader of chunks needs, and no landmark is in the archive."""
    def work(piece):
        data, info, offset = piece
        size = min(info.size - offset, CHUNK) if info else 0
        return member(data), info, offset, hashlib.sha256(data[:size]).hexdigest()

    entries, at = [], 0
    with open(out, "wb") as sink:
        for packed, info, offset, digest in in_order(work, pieces(tar)):
            if info:
                own = {"type": "reg", "size": info.size, "mode": info.mode} if offset == 0 else {"type": "chunk"}
                entries.append({"name": info.name, **own, "offset": at, "chunkOffset": offset,
                                "chunkSize": min(info.size - offset, CHUNK), "chunkDigest": "sha256:" + digest})
            at += sink.write(packed)
        table = json.dumps({"version": 1, "entries": entries}).encode()
        header = ustar_header(b"stargz.index.json", len(table), 0o444, ord("0"))
        sink.write(member(header + table + bytes(-len(table) % 512) + bytes(1024)))
        sink.write(b"\x1f\x8b\x08\4\0\0\0\0\0\xff\x1a\0SG\x16\0%016xSTARGZ\1\0\0\xff\xff" % at + bytes(8))


def frames(tar, out):
    """Writes an archive as zstd with a frame for each MiB."""
    def work(data):
        return subprocess.run(["zstd", "-3", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout

    with open(tar, "rb") as source, open(out, "wb") as sink:
        for frame in in_order(work, iter(lambda: source.read(FRAME), b"")):
            sink.write(frame)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/corpora"))
    parser.add_argument("--force", action="store_true", help="make corpora again that are there already")
    parser.add_argument("--indexed", action="store_true", help="add NAME.esgz and NAME.frames.zst to corpora that lack them")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: " + " ".join(DEFAULT))
    arguments = parser.parse_args()
    need("tar", "gzip", "zstd")
    os.nice(10)  # nobody waits for a corpus; others may be using this machine
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "corpora.json"
    known = json.loads(manifest.read_text()) if manifest.exists() else {}
    failed = False
    for name in arguments.names or DEFAULT:
        tar = out / f"{name}.tar"
        if name in known and tar.exists() and not arguments.force:
            if arguments.indexed and "tar.gz" in known[name]["forms"]:
                add_indexed(tar)
                known[name] = measure(tar)
                manifest.write_text(json.dumps(known, indent=1) + "\n")
            continue
        work = out / f".work-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            part = out / f"{name}.tar.part"
            print(f"making {name}", file=sys.stderr, flush=True)
            make(name, work, part)
            part.rename(tar)
            compress(tar)
            known[name] = measure(tar)
            manifest.write_text(json.dumps(known, indent=1) + "\n")
        except (Missing, subprocess.CalledProcessError) as error:
            failed = True
            print(f"{name}: not made: {error}", file=sys.stderr)
        finally:
            part.unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)
    print(f"{'corpus':14} {'entries':>9} {'files':>9} {'whiteouts':>9} {'tar MB':>9} {'gz MB':>8} {'zst MB':>8}  sha256 of the tar")
    for name, row in known.items():
        size = {form: f"{value['bytes'] / 1e6:.1f}" for form, value in row["forms"].items()}
        print(f"{name:14} {row['entries']:9} {row['files']:9} {row['whiteouts']:9} {size['tar']:>9} "
              f"{size.get('tar.gz', '-'):>8} {size.get('tar.zst', '-'):>8}  {row['forms']['tar']['sha256']}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except Missing as error:
        sys.exit(f"corpora.py: {error}")
