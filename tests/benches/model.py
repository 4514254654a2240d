#!/usr/bin/env python3
"""Computes how long Apply of a gzip layer takes on any number of processors, from what each step costs.

    cargo bench --bench inflate -- --costs costs.json        # what helpers that decode ahead cost
    tests/benches/model.py costs.json [--corpora DIR] [--plywood BIN] [--runs N] [--json FILE] [CORPUS ...]

It measures each layer with --decode-ahead=off and =auto, A B, B A, ..., and takes the time of each step from the reports of
the runs without helpers. Then it computes the wall time of both from the costs alone, for the processors of this machine,
beside what was measured, and for 4, 8 and 16, for which there is no measurement.

The model: the steps of a layer overlap as far as there are processors. Decoding, reading with the blob's digest, the digest
of the stream, and building are a thread each; laying out the rest, the check and the commit come after them all. Helpers get
what processors are left over, each one at most, and work on a share of the stream; the decoder puts the bytes of that share
in and decodes the rest. The share is the largest that the helpers can do meanwhile. Python's standard library only.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HELPERS_MAX = 4
BIG = ["minbase", "pydata", "node", "cuda", "tf"]
# Shorter blobs have no helpers.
FROM_BYTES = 64 << 20


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def apply(plywood, layer, out, ahead):
    start = time.perf_counter()
    shown = subprocess.run([plywood, "apply", layer, "-o", out, "--json", f"--decode-ahead={ahead}"],
                           check=True, capture_output=True, text=True)
    wall = time.perf_counter() - start
    report = json.loads(shown.stdout)
    out.unlink()
    return wall, report


def measure(plywood, layer, out, runs):
    """Median seconds of wall and of each step; wall with helpers, and their share of the bytes."""
    walls, steps, shares = {"off": [], "auto": []}, [], []
    for run in range(runs + 1):
        for ahead in ("off", "auto") if run % 2 else ("auto", "off"):
            wall, report = apply(plywood, layer, out, ahead)
            if run == 0:  # programs and files become warm
                continue
            walls[ahead].append(wall)
            if ahead == "off":
                steps.append(report["seconds"])
            else:
                shares.append(report["decoded_ahead"]["bytes"] / report["uncompressed_bytes"])
    return ({key: median(values) for key, values in walls.items()},
            {key: median([s[key] for s in steps]) for key in steps[0]}, median(shares))


def predict(steps, cost, processors, helpers):
    """Seconds of wall, and the share of the stream that helpers decode."""
    decode = steps["decode"]
    beside = [steps["read"] + steps["blob_digest"], steps["diff_id"], steps["build"]]
    tail = steps["finish"] + steps["verify"] + steps["commit"]
    # Of the whole stream.
    piece = decode * (cost["find"] + cost["decode"])
    put_in = decode * cost["resolve"]

    def share(wall):
        """The share that helpers must take for the decoder to end in time, if they can; None if not."""
        if wall < max(beside):
            return None
        if wall * processors >= decode + sum(beside) and wall >= decode:
            return 0.0
        if not helpers:
            return None
        needed = max(0.0, (decode - wall) / (decode - put_in))
        rest = decode * (1 - needed) + put_in * needed
        idle = min(helpers * wall, processors * wall - rest - sum(beside))
        return needed if needed <= 1 and idle >= piece * needed else None

    low, high = 0.0, decode + sum(beside) + 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) is not None else (middle, high)
    return high + tail, share(high)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=pathlib.Path)
    parser.add_argument("--corpora", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("PLYWOOD_CORPORA", "target/corpora")))
    parser.add_argument("--plywood", type=pathlib.Path, default=pathlib.Path("target/release/plywood"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target"), help="where outputs are written")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="write every figure there")
    parser.add_argument("names", nargs="*", metavar="CORPUS", default=BIG)
    arguments = parser.parse_args()
    costs = json.loads(arguments.costs.read_text())
    here = len(os.sched_getaffinity(0))
    print(f"{'':8} {'helpers':>7} {'measured':>8} {'computed':>8} {'error':>6} {'share':>6} {'of these':>8}   on {here} processors")
    rows, wrong = [], False
    with tempfile.TemporaryDirectory(prefix="plywood-model-", dir=arguments.work) as work:
        for name in arguments.names:
            layer = arguments.corpora / f"{name}.tar.gz"
            walls, steps, share = measure(arguments.plywood, layer, pathlib.Path(work) / "out", arguments.runs)
            row = {"corpus": name, "steps": steps, "cost": costs[name], "measured": walls, "computed": {}}
            is_large = layer.stat().st_size >= FROM_BYTES
            for ahead in ("off", "auto"):
                helpers = min(HELPERS_MAX, here - 1) if ahead == "auto" and is_large else 0
                wall, computed_share = predict(steps, costs[name], here, helpers)
                error = wall / walls[ahead] - 1
                wrong |= abs(error) > 0.1
                row["computed"][ahead] = wall
                shown = f"{share:6.2f} {computed_share:8.2f}" if ahead == "auto" else ""
                print(f"{name:8} {helpers:7} {walls[ahead]:8.3f} {wall:8.3f} {error:+6.1%} {shown}", flush=True)
            for processors in (4, 8, 16):
                both = []
                for most in (0, HELPERS_MAX):
                    helpers = min(most, processors - 1) if is_large else 0
                    both.append(predict(steps, costs[name], processors, helpers)[0])
                row["computed"][str(processors)] = {"off": both[0], "auto": both[1]}
            rows.append(row)
    print(f"\n{'':8} {'4: off':>8} {'auto':>6} {'8: off':>8} {'auto':>6} {'16: off':>8} {'auto':>6}   computed, not measured")
    for row in rows:
        cells = [row["computed"][str(n)] for n in (4, 8, 16)]
        print(f"{row['corpus']:8} " + " ".join(f"{cell['off']:8.3f} {cell['auto']:6.3f}" for cell in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
