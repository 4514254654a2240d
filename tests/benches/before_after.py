#!/usr/bin/env python3
"""Times two builds of plywood against each other, in pairs, on the corpora of corpora.py: did a change cost anything?

    tests/benches/before_after.py BEFORE AFTER [CORPUS ...] [--corpora DIR] [--trees DIR] [--pairs N] [--suite LIST]
                                  [--json FILE] [--gate]

Pairs, medians and ratios are those of paired.py; a ratio is after / before, above 1 is slower or larger.

  suite    both run
  apply    plywood apply of every coding of the corpora
  native   plywood apply of images made of minbase and pydata, plain and in zstd frames
  diff     plywood diff of the unpacked corpora into tar, tar+gzip, tar+zstd and EROFS

With --gate the exit status is 1 when a median ratio of CPU time, of wall time or of memory is above 1.03 in a row,
or the sizes of the outputs differ. Runs shorter than a tenth of a second, whose ratios are noise, are shown only.
Python's standard library only.
"""

import argparse
import pathlib
import sys

import compare
import paired
from paired import Failed, Side, execute, geomean, sha256

SUITES = ["apply", "native", "diff"]
LIMIT = 1.03
SHORT_S = 0.1


class Bench(compare.Bench):
    def __init__(self, arguments):
        arguments.plywood, arguments.option = pathlib.Path(arguments.after), []
        super().__init__(arguments)
        self.binaries = [str(arguments.after), str(arguments.before)]

    def sides(self, command):
        """The same command of both builds, AFTER first: it is the one that is judged."""
        outs = [self.work / "after", self.work / "before"]
        return [Side([[binary, *command, "-o", str(out)]], out) for binary, out in zip(self.binaries, outs)]

    def add(self, suite, what, command, files):
        after, before = self.sides(command)
        row = {"suite": suite, "corpus": what, "entries": None, "pairs": self.arguments.pairs,
               **paired.pair(after, before, self.arguments.pairs, files)}
        row["ratio"]["peak_bytes"] = row["ours"]["peak_bytes"] / row["peer"]["peak_bytes"]
        self.rows.append(row)
        print(paired.line(row), f"{row['ratio']['peak_bytes']:6.2f}", flush=True)

    def measure(self, suite, corpus):
        if suite == "apply":
            for form in ("tar.gz", "tar.zst", "tar"):
                layer = self.arguments.corpora / f"{corpus}.{form}"
                if layer.exists():
                    self.add(suite, f"{corpus} {form[4:]}", ["apply", str(layer)], [layer])
        elif suite == "native" and corpus in ("minbase", "pydata"):
            image, packed = self.work / "native.erofs", self.work / "native.erofs.zst"
            layer = self.arguments.corpora / f"{corpus}.tar"
            execute([[self.binaries[1], "apply", str(layer), "-o", str(image)]])
            execute([[self.need("zstd"), "-3", "-q", "-f", "-o", str(packed), str(image)]])
            kind = "application/vnd.erofs.layer.v1"
            for file, kind in ((image, kind), (packed, kind + "+zstd")):
                command = ["apply", str(file), "--media-type", kind, "--digest", sha256(file)]
                self.add(suite, f"{corpus} {kind[30:]}", command, [file])
        elif suite == "diff" and corpus in compare.TREES:
            tree = self.tree(corpus)
            for form in ("tar", "tar+gzip", "tar+zstd", "erofs"):
                self.add(suite, f"{corpus} {form}", ["diff", "none", str(tree), "-t", form], [])

    def run(self):
        known = sorted({path.name.removesuffix(".tar") for path in self.arguments.corpora.glob("*.tar")})
        for suite in self.arguments.suite:
            for corpus in self.arguments.names or known:
                try:
                    self.measure(suite, corpus)
                except (LookupError, Failed, OSError) as error:
                    self.skipped.append(f"{suite} {corpus}: {error}")
                    print(f"{suite} {corpus}: skipped: {error}", flush=True)


def bars(rows):
    long = [row for row in rows if row["peer"]["wall_s"]["median"] >= SHORT_S]
    for suite in SUITES:
        for key in ("cpu_s", "wall_s", "peak_bytes"):
            found = [row["ratio"][key] for row in long if row["suite"] == suite]
            yield suite, f"{key}, after / before, worst", max(found, default=None), LIMIT
            yield suite, f"{key}, after / before, geomean", geomean(found), LIMIT
    different = [abs(row["ours"]["size_bytes"] - row["peer"]["size_bytes"]) for row in rows]
    yield "all", "bytes more or less, worst", max(different, default=None), 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", type=pathlib.Path)
    parser.add_argument("after", metavar="AFTER", type=pathlib.Path)
    paired.common_arguments(parser)
    parser.add_argument("--trees", type=pathlib.Path, default=pathlib.Path("target/trees"),
                        help="where the corpora are unpacked")
    parser.add_argument("--suite", type=lambda text: text.split(","), default=SUITES, help=",".join(SUITES))
    parser.set_defaults(plywood=pathlib.Path(sys.executable))
    arguments = paired.parse(parser, SUITES)
    paired.conduct(Bench(arguments), bars)


if __name__ == "__main__":
    main()
