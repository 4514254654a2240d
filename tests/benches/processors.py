#!/usr/bin/env python3
"""Times `plywood apply` of a layer that goes through a stream processor, in pairs with the same layer without one.

    tests/benches/processors.py [--plywood BIN] [--pairs N] [--mb N] [--json FILE] [--gate]

The processor is `cat`, which changes nothing: what it costs is the broker, two pipes, and one more digest where the
layer is not compressed, since the digest of the blob is not the diffID then. Pairs, medians and ratios are those of paired.py.
The layer is made on the spot: an archive of N (500) million bytes of text and noise by turns.

  suite   input
  gzip    the archive in one gzip member
  plain   the archive

The bar is the median of the ratios of wall time for the gzip suite, which is what layers are. Python's standard library
only. As root: the daemon's rule that only root may write a processor holds for the command as well.
"""

import argparse
import gzip
import io
import json
import pathlib
import random
import shutil
import sys
import tarfile
import tempfile

import paired
from paired import Failed, Side

# Wall time with the processor by that without it.
BAR = 1.15
TYPES = {"gzip": "application/vnd.oci.image.layer.v1.tar+gzip", "plain": "application/vnd.oci.image.layer.v1.tar"}


def make(work, size):
    """The archive, plain and in gzip."""
    source = random.Random(1)
    words = [source.randbytes(source.randint(2, 9)).hex() for _ in range(4000)]
    plain = work / "layer.tar"
    with tarfile.open(plain, "w", format=tarfile.PAX_FORMAT) as archive:
        written, number = 0, 0
        while written < size:
            length = min(size - written, source.choice([2_000, 20_000, 200_000, 2_000_000]))
            if number % 3 == 0:
                data = source.randbytes(length)
            else:
                text = " ".join(source.choices(words, k=length // 8 + 1))
                data = text.encode()[:length].ljust(length, b".")
            entry = tarfile.TarInfo(f"d{number % 50}/f{number}")
            entry.size = length
            archive.addfile(entry, io.BytesIO(data))
            written, number = written + length, number + 1
    packed = work / "layer.tar.gz"
    with open(plain, "rb") as source, open(packed, "wb") as target:
        with gzip.GzipFile("", "wb", 6, target, 0) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    return {"gzip": packed, "plain": plain}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plywood", type=pathlib.Path, default=pathlib.Path("target/release/plywood"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--work", type=pathlib.Path, default=None, help="directory for layers and images")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--gate", action="store_true", help="fail when the bar is missed")
    arguments = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="plywood-bench-", dir=arguments.work))
    rows = []
    try:
        files = make(work, arguments.mb * 1_000_000)
        table = work / "processors.toml"
        rest = {suite: f'["x/{suite}"]' for suite in TYPES}
        table.write_text("".join(
            f'[stream_processors.{suite}]\naccepts = {rest[suite]}\nreturns = "{TYPES[suite]}"\npath = "/bin/cat"\n'
            for suite in TYPES))
        for suite, media_type in TYPES.items():
            def side(name, given, *more):
                out = work / f"{name}.erofs"
                command = [str(arguments.plywood), "apply", str(files[suite]), "-o", str(out), "--media-type", given]
                return Side([[*command, *more]], out)
            ours = side("processor", f"x/{suite}", "--processors", str(table))
            peer = side("without", media_type)
            row = {"suite": suite, "bytes_in": files[suite].stat().st_size, "pairs": arguments.pairs,
                   **paired.pair(ours, peer, arguments.pairs, [files[suite]])}
            rows.append(row)
            seconds = {name: row[key]["wall_s"]["median"] for name, key in (("cat", "ours"), ("without", "peer"))}
            print(f"{suite:6} {row['bytes_in'] / 1e6:6.0f} MB   with cat {seconds['cat']:.3f} s, without "
                  f"{seconds['without']:.3f} s, ratio {row['ratio']['wall_s']:.3f} wall, {row['ratio']['cpu_s']:.3f} cpu",
                  flush=True)
    except Failed as failure:
        sys.exit(f"processors.py: {failure}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    ratio = rows[0]["ratio"]["wall_s"]
    print(f"a processor costs {ratio:.3f} of the wall time, the bar is {BAR}: {'pass' if ratio <= BAR else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if arguments.gate and ratio > BAR:
        sys.exit(1)


if __name__ == "__main__":
    main()
