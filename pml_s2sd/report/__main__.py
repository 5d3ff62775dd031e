"""One self-contained HTML page of one or several training runs: tables that sort, training curves, pictures.

    python -m pml_s2sd.report runs/demo                                # writes runs/demo/report.html
    python -m pml_s2sd.report runs/demo-seed* --output demo.html       # seeds of one setting: means and gains
    python -m pml_s2sd.report runs/d16 runs/d32 --output sizes.html    # embedding sizes: Recall@1 against d

The runs are folders that examples/train.py wrote, or a RunWriter in a loop of your own. The page loads nothing from
anywhere: it can be mailed, or read on a phone without network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .._text import print_text
from .page import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, RUNS/NAME")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run's folder; of several runs, report.html where you are",
    )
    settings = parser.parse_args(arguments)
    try:
        print_text(str(write_report(settings.runs, settings.output)))
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"report: {error}") from error


if __name__ == "__main__":
    main()
