#!/usr/bin/env python3
"""Times `plywood diff` against tar and a compressor, in pairs, on the corpora of corpora.py unpacked to disk.

    tests/benches/compare.py [--corpora DIR] [--trees DIR] [--plywood BIN] [--pairs N] [--suite LIST]
                             [--json FILE] [--gate] [CORPUS ...]

Pairs, medians and ratios are those of paired.py. Each tree is a first layer: `plywood diff none TREE -o FILE`
against `tar -C TREE -c . | COMPRESSOR > FILE`, both from the page cache. Ours also hashes twice (diffID and
blob) and reads extended attributes, which tar is not asked to.

  suite   ours                 peer
  gzip    tar+gzip             tar | gzip -6
  fair    tar+gzip             tar | gzip -N, N the highest level up to 6 that gives at least as many bytes as ours
  zstd    tar+zstd             tar | zstd -3 -T1
  plain   tar                  tar
  erofs   EROFS                mkfs.erofs TREE, with the options containerd's differ passes (for information)
  threads ours with 0, 1, 3 and 8 helpers: no peer; the bytes must be the same

Why two suites for gzip: a compressor that gives fewer bytes has every right to take longer. GNU gzip at level 6
gives 4 % fewer bytes than Go's compress/gzip at its level 6, whose size is the one that containerd's users know and
that is not to be exceeded, and takes three times as long. So the time is also compared with a level of GNU gzip
whose output is no smaller than ours, and nothing is won by compressing less. Go's own, in containerd's differ, is
what the benches in integration/ pair with.

Trees are unpacked into --trees at the first use, with tar, as root for owners and devices. Python's standard
library only.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import paired
from paired import Failed, Side, execute, geomean, sha256

TREES = ["minbase", "pydata", "node", "tf"]
SUITES = ["gzip", "fair", "zstd", "plain", "erofs", "threads"]
# The bytes must be the same with each.
HELPERS = (0, 1, 3, 8)


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="plywood-bench-", dir=arguments.work))
        self.plywood = str(arguments.plywood)
        self.tools = paired.tools("tar", "gzip", "zstd", "mkfs.erofs")
        self.rows, self.skipped = [], []

    def tree(self, corpus):
        """The unpacked corpus; unpacked now, if it is not there."""
        tree = self.arguments.trees / corpus
        if not tree.is_dir():
            archive = self.arguments.corpora / f"{corpus}.tar"
            if not archive.exists():
                raise LookupError("no such corpus (tests/benches/corpora.py makes it)")
            print(f"unpacking {archive} into {tree}", flush=True)
            half = tree.with_name(tree.name + ".half")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            subprocess.run([self.tools["tar"], "-xpf", str(archive), "-C", str(half)], check=True)
            half.rename(tree)
        return tree

    def ours(self, tree, form, *more):
        out = self.work / "ours"
        return Side([[self.plywood, "diff", *self.arguments.option, *more, "none", str(tree), "-t", form,
                      "-o", str(out)]], out)

    def peer(self, tree, *compressor):
        out = self.work / "peer"
        commands = [[self.tools["tar"], "-C", str(tree), "-c", "."]]
        if compressor:
            commands.append(list(compressor))
        return Side(commands, out, stdout=out)

    def size(self, side):
        side.once()
        side.samples.clear()
        return side.size_bytes

    def fair(self, tree):
        """The highest level of gzip up to 6 whose output is at least as large as ours."""
        limit = self.size(self.ours(tree, "tar+gzip"))
        for level in range(6, 0, -1):
            peer = self.peer(tree, self.tools["gzip"], f"-{level}")
            if self.size(peer) >= limit:
                return level, peer
        raise LookupError("no level of gzip gives as many bytes")

    def measure(self, suite, corpus):
        tree = self.tree(corpus)
        note = ""
        if suite == "threads":
            return self.threads(corpus, tree)
        if suite == "gzip":
            ours, peer = self.ours(tree, "tar+gzip"), self.peer(tree, self.need("gzip"), "-6")
        elif suite == "fair":
            self.need("gzip")
            level, peer = self.fair(tree)
            ours, note = self.ours(tree, "tar+gzip"), f" -{level}"
        elif suite == "zstd":
            ours, peer = self.ours(tree, "tar+zstd"), self.peer(tree, self.need("zstd"), "-3", "-T1", "-q")
        elif suite == "plain":
            ours, peer = self.ours(tree, "tar"), self.peer(tree)
        else:
            out = self.work / "peer"
            options = ["--quiet", "-Enoinline_data", "-b4096", "-T0", "--mkfs-time", "--sort=none"]
            peer = Side([[self.need("mkfs.erofs"), *options, str(out), str(tree)]], out)
            ours = self.ours(tree, "erofs")
        row = {"suite": suite, "corpus": corpus + note, "entries": None, "pairs": self.arguments.pairs,
               **paired.pair(ours, peer, self.arguments.pairs, [])}
        self.rows.append(row)
        print(paired.line(row), flush=True)

    def threads(self, corpus, tree):
        digests = {}
        for form in ("tar+gzip", "tar+zstd"):
            for count in HELPERS:
                side = self.ours(tree, form, "--threads", str(count))
                sample = execute(side.commands)
                digests.setdefault(form, set()).add(sha256(side.out))
                row = {"suite": "threads", "corpus": f"{corpus} {form[4:]} {count}", "form": form, "helpers": count,
                       **{key: sample[key] for key in ("wall_s", "cpu_s", "peak_bytes")}}
                self.rows.append(row)
                print(f"threads {row['corpus']:15} {sample['wall_s']:8.3f} s wall {sample['cpu_s']:8.3f} s cpu "
                      f"{sample['peak_bytes'] / paired.MIB:6.0f} MiB", flush=True)
                side.out.unlink()
        self.rows.append({"suite": "digests", "corpus": corpus, "different": max(map(len, digests.values())) - 1})

    def need(self, name):
        if not self.tools[name]:
            raise LookupError(f"needs {name} (integration/setup/tools.sh unpacks erofs-utils)")
        return self.tools[name]

    def run(self):
        for suite in self.arguments.suite:
            for corpus in self.arguments.names or TREES:
                try:
                    self.measure(suite, corpus)
                except (LookupError, Failed, OSError, subprocess.CalledProcessError) as error:
                    self.skipped.append(f"{suite} {corpus}: {error}")
                    print(f"{suite} {corpus}: skipped: {error}", flush=True)


def bars(rows):
    """Every bar as (name, what, value, limit); value None when it was not measured."""
    def ratios(suite, key):
        return [row["ratio"][key] for row in rows if row["suite"] == suite]

    yield "P12", "tar+gzip, wall, against gzip -6, geomean", geomean(ratios("gzip", "wall_s")), 0.55
    yield "P12", "tar+gzip, wall, against as many bytes, geomean", geomean(ratios("fair", "wall_s")), 0.55
    yield "P12", "tar+gzip, size against that peer, worst", max(ratios("fair", "size_bytes"), default=None), 1.0
    yield "P13", "tar+zstd, wall, against zstd -3 -T1, geomean", geomean(ratios("zstd", "wall_s")), 0.70
    yield "P13", "tar+zstd, size, worst", max(ratios("zstd", "size_bytes"), default=None), 1.05
    different = [row["different"] for row in rows if row["suite"] == "digests"]
    yield "P12", "other bytes with other threads", max(different, default=None), 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    paired.common_arguments(parser)
    parser.add_argument("--trees", type=pathlib.Path, default=pathlib.Path("target/trees"),
                        help="where the corpora are unpacked")
    parser.add_argument("--suite", type=lambda text: text.split(","), default=SUITES, help=",".join(SUITES))
    parser.add_argument("--option", action="append", default=[],
                        help="an option more for plywood diff, e.g. --option=--level=6")
    arguments = paired.parse(parser, SUITES)
    paired.conduct(Bench(arguments), bars)


if __name__ == "__main__":
    main()
