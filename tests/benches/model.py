#!/usr/bin/env python3
"""Computes how long Apply of a gzip layer takes on any number of processors, from what each step costs.

    cargo bench --bench inflate -- --costs costs.json        # what helpers that decode ahead cost
    tests/benches/model.py costs.json [--corpora DIR] [--plywood BIN] [--runs N] [--json FILE] [CORPUS ...]

It measures each layer with --decode-ahead=off and =auto, A B, B A, ..., and takes the time of each step from the reports of
the runs without helpers. Then it computes the wall time of both from the costs alone, for the processors of this machine,
beside what was measured, and for 4, 8 and 16, for which there is no measurement.

The model is a simulation. The layer is cut into pieces of equal length, and each step takes its share of its time for each of
them, now more, now less (gamma distributed, as spread as an exponential; the same numbers in each run). Reading with the blob's
digest, decoding, building and the digest of the stream are a thread each, in this order; as many pieces as the program has
buffers wait before each. Threads that have something to do share the processors equally, and helpers share those that are
left over. A helper decodes from 4 MiB ahead of the decoder on, for as many bytes. When the decoder comes to where it
began, the decoder puts in what is ready, and the helper begins again. Laying out the rest, the check and the commit come
after all. Not in it: what threads cost each other in caches and memory, the disk, and the memory of helpers. Python's standard
library only.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

HELPERS_MAX = 4
BIG = ["minbase", "pydata", "node", "cuda", "tf"]
# Shorter blobs have no helpers.
FROM_BYTES = 64 << 20
DISTANCE_BYTES = 4 << 20
# Chunks that wait before a thread.
DEPTH = 6
PIECES = 1000


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


class Step:
    """A thread with a queue before it."""

    def __init__(self, seconds, spread):
        shares = [spread.expovariate(1) for _ in range(PIECES)]
        self.costs = [seconds * share / sum(shares) for share in shares]
        self.done, self.left = 0, None


class Helper:
    """A helper, at work on the pieces from `start` up to `end`; those up to `done` are ready."""

    def __init__(self):
        self.start = self.done = self.end = self.left = None


def predict(steps, cost, processors, helpers, blob_bytes):
    """Seconds of wall, and the share of the stream that helpers decode."""
    spread = random.Random(1)
    names = {"read": steps["read"] + steps["blob_digest"], "decode": steps["decode"], "build": steps["build"],
             "hash": steps["diff_id"]}
    read, decode, build, digest = threads = [Step(seconds, spread) for seconds in names.values()]
    distance = max(1, round(PIECES * DISTANCE_BYTES / blob_bytes))
    window = distance * (helpers + 1) if helpers else DEPTH
    idle_helpers, search_from, used, clock = [Helper() for _ in range(helpers)], 0, set(), 0.0

    def has_work(step):
        if step.done == PIECES:
            return False
        if step is read:
            return read.done - decode.done < window
        if step is decode:
            return read.done > decode.done and decode.done - build.done <= DEPTH
        if step is build:
            return decode.done > build.done and build.done - digest.done <= DEPTH
        # Building passes a piece on before it works on it.
        return decode.done > digest.done and build.done >= digest.done

    def begin(helper):
        nonlocal search_from
        start = max(search_from, decode.done + distance)
        if start < read.done:
            helper.start = helper.done = start
            helper.end = min(start + distance, PIECES)
            search_from, helper.left = helper.end, None

    while min(step.done for step in threads) < PIECES:
        for helper in idle_helpers:
            if helper.start is not None and decode.done >= helper.start:
                used.update(range(helper.start, helper.done))
                helper.start = None
            if helper.start is None:
                begin(helper)
        at_work = [step for step in threads if has_work(step)]
        for step in at_work:
            if step.left is None:
                step.left = step.costs[step.done] * (cost["resolve"] if step is decode and step.done in used else 1)
        ahead = [h for h in idle_helpers if h.start is not None and h.done < min(h.end, read.done)]
        for helper in ahead:
            if helper.left is None:
                helper.left = decode.costs[helper.done] * (cost["find"] + cost["decode"])
        rate = min(1.0, processors / len(at_work))
        rest = min(1.0, max(0, processors - len(at_work)) / len(ahead)) if ahead else 0.0
        step_s = min([step.left / rate for step in at_work] + [h.left / rest for h in ahead if rest])
        clock += step_s
        for worker, speed in [(step, rate) for step in at_work] + [(helper, rest) for helper in ahead]:
            worker.left -= step_s * speed
            if worker.left <= 1e-12:
                worker.left, worker.done = None, worker.done + 1
    tail = steps["finish"] + steps["verify"] + steps["commit"]
    return clock + tail, len(used) / PIECES


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
                wall, computed_share = predict(steps, costs[name], here, helpers, layer.stat().st_size)
                error = wall / walls[ahead] - 1
                wrong |= abs(error) > 0.1
                row["computed"][ahead] = wall
                shown = f"{share:6.2f} {computed_share:8.2f}" if ahead == "auto" else ""
                print(f"{name:8} {helpers:7} {walls[ahead]:8.3f} {wall:8.3f} {error:+6.1%} {shown}", flush=True)
            for processors in (4, 8, 16):
                both = []
                for most in (0, HELPERS_MAX):
                    helpers = min(most, processors - 1) if is_large else 0
                    both.append(predict(steps, costs[name], processors, helpers, layer.stat().st_size)[0])
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
