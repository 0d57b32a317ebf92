"""`python -m fuzz`: run cases of some targets, or one that was kept."""

import argparse
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import checkpoints, commands, media, prompts
from fuzz.case import Finding
from fuzz.hunt import LIMITS, Hunt, name_of, replay

TARGETS = {
    target.name: target
    for module in (checkpoints, media, prompts, commands)
    for target in module.TARGETS
}
OK, FOUND, INTERRUPTED = 0, 1, 130
_BLOCK = 2000  # cases of one worker, so that what a decoder leaks never adds up


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return 0 if nothing was found, 1 if something was, 130 if interrupted."""
    options = _parse(arguments)
    if options.replay:
        return _replay(options.replay)
    hunts: list[Hunt] = []
    try:
        for name in options.target or TARGETS:
            share = -(-options.cases // len(options.target or TARGETS))
            hunts.append(Hunt(TARGETS[name], options.seed, options.output))
            _hunt(hunts[-1], options.start, options.start + share, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _sum_up(hunts, options.output)
        return INTERRUPTED
    return _sum_up(hunts, options.output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=sys.modules["fuzz"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--target", action="append", choices=TARGETS, help="may be repeated; all if left out"
    )
    for name, kind, default, meaning in (
        ("--cases", above_0, 10_000, "of all targets together"),
        ("--seed", int, 0, "another one draws other cases"),
        ("--start", int, 0, "number of each target's first case"),
        ("--jobs", above_0, 1, "workers side by side"),
    ):
        text = f"{meaning} ({default})"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    parser.add_argument(
        "--output", type=Path, default=Path("build/fuzz"), help="where findings are kept"
    )
    parser.add_argument("--replay", type=Path, help="run a finding that was kept, and nothing else")
    options = parser.parse_args(arguments)
    if options.replay and not zipfile.is_zipfile(options.replay):
        parser.error(f"{options.replay} is no finding; give a zip file out of --output")
    return options


def above_0(text: str) -> int:
    """Return a whole number; argparse says what a ValueError is about."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _replay(path: Path) -> int:
    finding = Finding.load(path)
    answer = replay(TARGETS[finding.target], finding.files)
    if isinstance(answer, Counter):
        print(f"{path}: {', '.join(+answer)}; it is not a finding any more")
        return OK
    print(f"{path}: {answer.kind} at {answer.place}\n{answer.detail}")
    return FOUND


def _hunt(hunt: Hunt, start: int, stop: int, jobs: int) -> None:
    """Run a target's cases in blocks, with a line of progress on a terminal."""
    done, begun = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        rate = done / (time.monotonic() - begun)
        line = f"{hunt.target.name}: {done:,} of {stop - start:,} cases, {rate:,.0f} a second"
        if sys.stderr.isatty():
            found = f", {len(hunt.findings)} findings" if hunt.findings else ""
            print(f"\r\x1b[K{line}{found}", end="", file=sys.stderr, flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        blocks = [(at, min(at + _BLOCK, stop)) for at in range(start, stop, _BLOCK)]
        for ended in [pool.submit(hunt.run, *block, advance) for block in blocks]:
            ended.result()
    finally:
        hunt.is_stopped = True
        pool.shutdown(cancel_futures=True)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        print(_account(hunt, time.monotonic() - begun), flush=True)


def _account(hunt: Hunt, seconds: float) -> str:
    counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(hunt.counts.items()))
    total = hunt.counts.total()
    return f"{hunt.target.name:<10} {total:>9,} cases in {seconds:,.0f} s: {counts}"


def _sum_up(hunts: Sequence[Hunt], output: Path) -> int:
    """Print all findings, and return the exit code."""
    total = sum(hunt.counts.total() for hunt in hunts)
    findings = [found for hunt in hunts for found in hunt.findings.values()]
    print(f"{total:,} cases, {len(findings)} findings; limit {LIMITS.processor_s:g} s a case")
    for finding, times in findings:
        once = "" if finding.is_repeatable else ", not repeatable"
        print(f"  {finding.target}: {finding.kind}, {finding.place}, {times} times{once}")
        print(f"    {output / name_of(finding)}")
    return FOUND if findings else OK


if __name__ == "__main__":
    sys.exit(main())
