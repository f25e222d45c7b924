"""What `make style` counts: the habits that are yes or no are kept."""

import subprocess
import sys
from pathlib import Path

COUNTER = Path(__file__).parent / "style.py"


def test_the_habits_that_are_yes_or_no_are_kept():
    shown = subprocess.run([sys.executable, str(COUNTER)], capture_output=True, text=True, check=True).stdout
    rows = dict(line.split("  ", 1) for line in shown.splitlines())
    assert rows.keys() >= {"functions", "files, lines", "longest files"}
    zero = [habit for habit, row in rows.items() if row.rstrip().endswith("[0]")]
    assert len(zero) == 5
    assert {habit: rows[habit].split("[")[0].strip() for habit in zero} == dict.fromkeys(zero, "0")
