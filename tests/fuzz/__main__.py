"""Fuzz for as long as you like, as root:

    .venv/bin/python -m tests.fuzz [TARGET…] [--seconds N] [--seed N] [--input FILE]

Targets: tar, unpack, reference, hosts, policy, request, pod, cdi, cdi-names, pressure; all of them
in turns by default. A fault is printed with its traceback, its input is written to a file, and the
exit code is 1. `--input FILE` runs one target on a file again. The unit tests run a short, fixed
part of the same. An input of request or pod that reaches a line which none has reached before joins
corpus/TARGET, from which later runs begin.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import zlib
from pathlib import Path

from tests.fuzz import cri_targets, targets
from tests.fuzz.coverage import Lines
from tests.fuzz.targets import Target

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {**targets.TARGETS, **cri_targets.TARGETS}


def main() -> int:
    """Run the targets; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default 60)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--input", type=Path, help="run one target on this file only")
    options = parser.parse_args()
    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"no target {name!r}; there are {', '.join(TARGETS)}")
    if options.input is not None:
        if len(options.targets) != 1:
            parser.error("--input needs one target")
        TARGETS[options.targets[0]].run(options.input.read_bytes())
        return 0
    return max(
        _fuzz(name, TARGETS[name], options.seconds, options.seed)
        for name in options.targets or TARGETS
    )


def corpus(name: str) -> list[bytes]:
    """Return the inputs that earlier runs have kept of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def _fuzz(name: str, target: Target, seconds: float, seed: int) -> int:
    source, lines = random.Random(seed), Lines(target.covers)
    known = [*target.seeds, *corpus(name)]
    waiting, runs = list(known), 0
    deadline = time.monotonic() + seconds
    while waiting or time.monotonic() < deadline:
        data = waiting.pop() if waiting else target.mutated(source, known)
        runs += 1
        try:
            if lines.adds(target.run, data) and data not in known:
                known.append(data)
                _keep(name, data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            path = Path(f"fuzz-{name}-{seed}-{runs}")
            path.write_bytes(data)
            traceback.print_exc()
            print(f"{name}: fault at run {runs} with seed {seed}; the input is in {path}")
            return 1
    print(f"{name}: {runs} runs with seed {seed}, {len(lines.reached)} lines, no fault")
    return 0


def _keep(name: str, data: bytes) -> None:
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    (CORPUS / name / f"{zlib.crc32(data):08x}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
