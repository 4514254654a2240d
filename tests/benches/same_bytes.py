#!/usr/bin/env python3
"""Shows that two builds of plywood give the same bytes and the same words, for changes that must not change any.

    tests/benches/same_bytes.py BEFORE AFTER [PATH ...] [--corpora DIR] [--work DIR] [--list FILE]

BEFORE and AFTER are two binaries. Each runs every command below, and what differs is printed; the exit status is 1
then. --list writes the lines of AFTER, one a command: digest of the output, digest of the report, command.

  apply   every layer of the corpora (corpora.py) in every coding, every input of the fuzz corpora and every PATH,
          with four sets of options: the image, or the error with its reason id
  check   every fixture and every input of the fuzz corpora
  dump    every fixture, as a tree
  diff    the fixtures against nothing and against each other, and two corpora, in every type of layer, with and
          without helper threads
  words   help of every command, the default configuration, completions, the manual page, containerd's snippets

Reports are compared without times. Python's standard library only.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = [[], ["--inline-limit=0"], ["--block-size=512"], ["--block-size=1024", "--inline-limit=1000"]]
TYPES = ["tar", "tar+gzip", "tar+zstd", "erofs", "erofs+zstd"]
COMMANDS = ["apply", "diff", "check", "dump", "serve", "config", "completions", "man"]


def inputs(folder, names="*"):
    return sorted(path for path in (REPO / folder).glob(names) if path.is_file())


def commands(arguments):
    """Every command line, OUT standing for the file it writes."""
    layers = [path for suffix in ("tar", "tar.gz", "tar.zst") for path in sorted(arguments.corpora.glob("*." + suffix))]
    fuzz = [path for name in ("tar_parser", "gzip", "zstd") for path in inputs(f"tests/fuzz/corpus/{name}")]
    images = inputs("tests/fixtures/erofs", "*.erofs") + inputs("tests/fuzz/corpus/erofs_image")
    for layer in layers + fuzz + arguments.paths:
        # Large layers differ by their options in the same places as small ones.
        large = layer.stat().st_size > 300 << 20
        for options in OPTIONS[: 1 if large else None]:
            yield ["apply", str(layer), "-o", "OUT", "--json", *options]
    for image in images:
        yield ["apply", str(image), "-o", "OUT", "--json", "--media-type", "application/vnd.erofs.layer.v1"]
        yield ["check", "--json", str(image)]
        yield ["check", "--rules", "any", str(image)]
        yield ["dump", "--tree", str(image)]
    fixtures = inputs("tests/fixtures/erofs", "*.erofs")
    for image in fixtures:
        for kind in TYPES:
            yield ["diff", "none", str(image), "-o", "OUT", "--json", "--type", kind]
        yield ["diff", str(image), "none", "-o", "OUT", "--json", "--type", "tar"]
        for other in fixtures:
            yield ["diff", str(image), str(other), "-o", "OUT", "--json", "--type", "tar"]
            yield ["diff", "--layer", str(image), str(other), "-o", "OUT", "--json", "--type", "erofs"]
    for image in inputs("tests/fuzz/corpus/ext4_image"):
        yield ["diff", "none", str(image), "-o", "OUT", "--json", "--type", "tar"]
    for tree in arguments.trees:
        for kind in TYPES:
            for threads in ("0", "3"):
                yield ["diff", "none", str(tree), "-o", "OUT", "--json", "--type", kind, "--threads", threads]
    for command in COMMANDS:
        yield [command, "--help"]
    yield ["--help"]
    yield ["config", "default"]
    yield ["man"]
    for shell in ("bash", "zsh", "fish"):
        yield ["completions", shell]
    for version in ("2.1", "2.2", "2.3", "2.4"):
        yield ["config", "containerd", "--version", version]


def report(text):
    """A report without what no two runs share."""
    text = re.sub(r"\([0-9a-f]{12}(-dirty)?\)", "(COMMIT)", text)
    try:
        found = json.loads(text)
    except ValueError:
        return re.sub(r"(?m)^seconds .*$|\d+(\.\d+)? ?(ms|s)\b", "", text)
    if isinstance(found, dict):
        found.pop("seconds", None)
    return json.dumps(found, sort_keys=True)


def run(binary, command, out):
    out.unlink(missing_ok=True)
    # Wide enough that help is not wrapped by the terminal of whoever runs this.
    environment = {**os.environ, "COLUMNS": "120", "RUST_LOG": "off"}
    line = [str(out) if word == "OUT" else word for word in command]
    done = subprocess.run([binary, *line], capture_output=True, text=True, env=environment)
    said = "\n".join([str(done.returncode), report(done.stdout), report(done.stderr)]).replace(str(out), "OUT")
    digest = "-" * 64
    if out.exists():
        with out.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, said


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("before", metavar="BEFORE")
    parser.add_argument("after", metavar="AFTER")
    parser.add_argument("--corpora", type=pathlib.Path, default=REPO / "target/corpora")
    parser.add_argument("--work", type=pathlib.Path, default=REPO / "target", help="where outputs are written")
    parser.add_argument("--list", type=pathlib.Path, help="write every digest of AFTER there")
    parser.add_argument("paths", nargs="*", type=pathlib.Path, metavar="PATH", help="more layers to apply")
    arguments = parser.parse_args()
    lines, differences, count = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="plywood-same-", dir=arguments.work) as work:
        work = pathlib.Path(work)
        binaries = []
        for side in ("before", "after"):
            # Help names the program as it was called.
            (work / side).mkdir()
            binaries.append(work / side / "plywood")
            binaries[-1].symlink_to(pathlib.Path(getattr(arguments, side)).resolve())
        arguments.trees = []
        for name in ("whiteout", "tiny", "minbase"):
            archive = arguments.corpora / f"{name}.tar"
            if archive.exists():
                tree = work / name
                tree.mkdir()
                # As root, for owners and devices.
                subprocess.run(["tar", "-C", tree, "-xf", archive, "--xattrs", "--xattrs-include=*"], check=True)
                arguments.trees.append(tree)
        for command in commands(arguments):
            count += 1
            sides = [run(binary, command, work / "out") for binary in binaries]
            shown = " ".join(command).replace(str(work), "WORK").replace(str(REPO) + "/", "")
            digest, said = sides[1]
            lines.append(f"{digest} {hashlib.sha256(said.encode()).hexdigest()} {shown}")
            if sides[0] != sides[1]:
                differences += 1
                print(f"differs: {shown}")
                for name, (digest, said) in zip(("before", "after"), sides):
                    print(f"  {name}: {digest[:16]} {said[-600:]}")
    if arguments.list:
        arguments.list.write_text("\n".join(lines) + "\n")
    print(f"{count} commands, {differences} differ")
    return 1 if differences or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
