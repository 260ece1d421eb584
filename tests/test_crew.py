"""Tasks in this process and in others; failures, deaths, and what is left when we die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from surgeon.crew import Failure, run_tasks
from tests.crew_tasks import do, make_base


def test_tasks_are_done_here_in_order():
    done = list(run_tasks([1, "user", "bug", 2], make_base, do, jobs=1))
    assert done == [
        (1, (11, os.getpid(), torch.get_num_threads())),
        ("user", Failure("val.csv: empty\n  add rows")),
        ("bug", Failure("ZeroDivisionError: by zero")),
        (2, (12, os.getpid(), torch.get_num_threads())),
    ]
    assert list(run_tasks([], make_base, do, jobs=2)) == []


def test_processes_share_tasks_and_survive_each_other():
    done = dict(run_tasks(["die", 1, "user", 2, 3], make_base, do, jobs=2))
    assert done["die"] == Failure(
        "its process ended by signal 9; with fewer jobs each has more memory"
    )
    assert done["user"] == Failure("val.csv: empty\n  add rows")
    assert [done[i][0] for i in (1, 2, 3)] == [11, 12, 13]
    # Of the first two one dies, and the next task finds the other one or a new one.
    assert len({done[i][1] for i in (1, 2, 3)}) <= 2
    assert os.getpid() not in {done[i][1] for i in (1, 2, 3)}
    assert {done[i][2] for i in (1, 2, 3)} == {max(1, (os.cpu_count() or 1) // 2)}


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    pid = tmp_path / "pid"
    script = tmp_path / "parent.py"
    script.write_text(
        "from surgeon.crew import run_tasks\n"
        "from tests.crew_tasks import linger, make_base\n"
        "if __name__ == '__main__':\n"
        f"    list(run_tasks([{str(pid)!r}], make_base, linger, jobs=2))\n"
    )
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": root})
    child = int(_wait(lambda: pid.is_file() and pid.read_text()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait(lambda: not _runs(child))


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie has ended
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
