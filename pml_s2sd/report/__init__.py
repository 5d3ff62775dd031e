"""The folder of a training run, written and read, and its report: one HTML page of one or several runs."""

from .page import write_report
from .run_folder import RunWriter, read_run

__all__ = ["RunWriter", "read_run", "write_report"]
