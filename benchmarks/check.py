"""Whether the committed ratios still hold: reruns the quick benchmarks and compares every ratio with the committed one.

Fails where a ratio is more than the tolerance away, in either direction: an improvement wants new results committed.
Smaller batches than 4096 are left out of large_batch: their memory and time scatter by more than the tolerance.
They are ratios within one run, so that another machine can be compared with; where its memory is faster or slower for
its arithmetic, some will differ all the same. 15 %, the default, is what they scatter by on a machine with other work.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measure import RESULTS, read

QUICK = {"loss_step": [], "deployed": [], "large_batch": ["--rows", "4096"]}


class Row(NamedTuple):
    """One ratio: what was committed and what was found now, None where a side lacks it."""

    name: str
    expected: float | bool | None
    found: float | bool | None

    def holds(self, tolerance: float) -> bool:
        if self.expected is None or self.found is None:
            return False
        if isinstance(self.expected, bool):
            return self.found is self.expected
        return abs(self.found - self.expected) <= tolerance * self.expected


def ratios(figures: dict[str, Any], above: str = "") -> Iterator[tuple[str, float | bool]]:
    """What can be compared between machines: the ratios, by key, and what is true or false."""
    for key, value in figures.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            yield from ratios(value, f"{name}, ")
        elif re.search(r"\bratio\b", key) or isinstance(value, bool):
            yield name, value


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[Row]:
    """Every ratio of the figures found, and of those expected that belong to a thing that was measured."""
    of_expected, of_found = (dict(ratios({k: f[k] for k in f if k in found})) for f in (expected, found))
    return [Row(name, of_expected.get(name), of_found.get(name)) for name in dict.fromkeys([*of_expected, *of_found])]


def table(rows: list[Row], tolerance: float) -> str:
    width = max(len(row.name) for row in rows)
    lines = [f"{'ratio':{width}}  expected     found"]
    for row in rows:
        values = "".join(f"{'-' if value is None else str(value):>10}" for value in row[1:])
        lines.append(f"{row.name:{width}}{values}{'' if row.holds(tolerance) else '   differs'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=0.15, help="relative; default 0.15")
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=list(QUICK))
    chosen = parser.parse_args()
    differing = 0
    for name in chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(__file__).parent / f"{name}.py"
            command = [sys.executable, str(script), *QUICK[name], "--results", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows = compare(read(name, RESULTS)["figures"], read(name, Path(folder))["figures"])
        print(f"{name}\n{table(rows, chosen.tolerance)}\n", flush=True)
        differing += sum(not row.holds(chosen.tolerance) for row in rows)
    print(f"{differing} ratios more than {chosen.tolerance:.0%} from those committed")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
