"""Runs that repeat one another are put together; others are not."""

import pytest
from run_folders import record_of, write_run

from pml_s2sd.report.run_folder import read_runs
from pml_s2sd.report.series import gains, recall_by_size, series_of


def test_runs_of_other_settings_are_series_of_their_own(tmp_path):
    folders = [
        write_run(tmp_path, f"d{d}-{seed}", {"msdfa": record_of(d / 100)}, embedding_size=d, seed=seed, epochs=3 + seed)
        for d in (16, 32)
        for seed in (0, 1)
    ]
    runs = read_runs(folders)
    assert list(series_of(runs)) == [f"msdfa, d={d}, epochs={e}" for d in (16, 32) for e in (3, 4)]
    assert recall_by_size(runs) == {
        f"msdfa, epochs={e}": {16: [pytest.approx(16)], 32: [pytest.approx(32)]} for e in (3, 4)
    }
    assert gains(runs, "f1") == {}  # no baseline to gain on
