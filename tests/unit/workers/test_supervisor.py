"""Children are started again, stopped together, and gone when we are; with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers import guard
from workers.supervisor import Command, Supervisor, last_words, pause_before, rotate

SLEEPER = "import time; print('awake', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); {SLEEPER}"


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet counts as ended."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip()[:1] in ("", "Z")


def members(group: int) -> list[int]:
    told = subprocess.run(["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in told.stdout.splitlines()]
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


class Family:
    """A supervisor under test, with what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.now = 0.0
        self.supervisor = Supervisor(self.said.append, clock=lambda: time.monotonic() + self.now)

    def start(self, code: str, name: str = "worker") -> int:
        log = self.folder / f"{name}.log"
        self.supervisor.start(Command(name, (sys.executable, "-c", code), {"PATH": os.environ["PATH"]}, log))
        return self.pid(name)

    def started(self, code: str, name: str = "worker") -> int:
        pid = self.start(code, name)
        eventually(lambda: "awake" in (self.folder / f"{name}.log").read_text())
        return pid

    def pid(self, name: str = "worker") -> int:
        pid = self.supervisor.pid(name)
        assert pid is not None
        return pid

    def tend_until(self, condition: Callable[[], object]) -> None:
        def met() -> object:
            self.supervisor.tend()
            return condition()

        eventually(met)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    family.supervisor.kill()
    family.supervisor.close()


@pytest.mark.parametrize(
    ("deaths", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (8, 30.0), (1000, 30.0)]
)
def test_pauses_grow_up_to_half_a_minute(deaths, seconds):
    assert pause_before(deaths) == seconds


def test_a_killed_child_is_started_again(family):
    first = family.start(SLEEPER)
    os.kill(first, signal.SIGKILL)
    family.tend_until(lambda: family.supervisor.statuses()[0].pid not in (None, first))
    assert family.supervisor.statuses()[0].restarts == 1
    assert len(family.said) == 1
    assert f"worker (pid {first}) was killed by SIGKILL" in family.said[0]


def test_a_crash_loop_slows_down_and_says_why(family):
    family.start("import sys; print('secretly', flush=True); sys.exit('CLOUDSUITE_URL: is wrong')")
    for deaths in (1, 2, 3):
        family.tend_until(lambda deaths=deaths: len(family.said) == deaths)
        again_in = family.supervisor.statuses()[0].again_in
        assert again_in is not None
        assert pause_before(deaths) - 1 < again_in <= pause_before(deaths)
        family.now += pause_before(deaths)
    assert (
        "ended with exit code 1 (3 times in a row): CLOUDSUITE_URL: is wrong. Starting it again in 2 s"
        in (family.said[2])
    )


def test_a_child_that_lived_long_starts_again_soon(family):
    for deaths in (1, 2):
        pid = family.pid() if deaths == 2 else family.start(SLEEPER)
        os.kill(pid, signal.SIGKILL)
        family.tend_until(lambda deaths=deaths: len(family.said) == deaths)
        family.tend_until(lambda: family.supervisor.statuses()[0].pid is not None)
    family.now += 31
    os.kill(family.pid(), signal.SIGKILL)
    family.tend_until(lambda: len(family.said) == 3)
    assert "in a row" not in family.said[2]
    assert "in 0.5 s" in family.said[2]


def test_stopping_asks_first_and_kills_who_is_late(family):
    polite, stubborn = family.started(SLEEPER, "polite"), family.started(STUBBORN, "stubborn")
    assert family.supervisor.stop(seconds=0.5) == ["stubborn"]
    assert gone(polite)
    assert gone(stubborn)
    family.supervisor.tend()
    assert [status.pid for status in family.supervisor.statuses()] == [None, None]
    assert family.said == []


def test_some_can_be_stopped_before_others(family):
    worker, broker = family.started(SLEEPER, "worker"), family.started(SLEEPER, "broker")
    family.supervisor.stop(["worker"], seconds=5)
    assert gone(worker)
    assert not gone(broker)


def test_a_childs_own_children_end_with_it(family):
    group = family.started(WITH_CHILD)
    eventually(lambda: len(members(group)) == 2)
    os.kill(group, signal.SIGKILL)
    family.tend_until(lambda: family.said)
    eventually(lambda: not members(group))


def test_children_end_when_their_parent_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        eventually(lambda: all("awake" in (tmp_path / f"{name}.log").read_text() for name in ("polite", "stubborn")))
        assert not any(gone(pid) for pid in pids)
        parent.kill()
    eventually(lambda: all(gone(pid) for pid in pids))


PARENT = f"""
import os, sys, time
from pathlib import Path
from workers.supervisor import Command, Supervisor

supervisor = Supervisor(print)
for name, code in (("polite", {WITH_CHILD!r}), ("stubborn", {STUBBORN!r})):
    log = Path(sys.argv[1]) / f"{{name}}.log"
    supervisor.start(Command(name, (sys.executable, "-c", code), dict(os.environ), log))
print(supervisor.pid("polite"), supervisor.pid("stubborn"), flush=True)
time.sleep(600)
"""


def test_the_guard_knows_who_has_gone():
    assert guard.read_groups([b"+10\n", b"+11\n", b"-10\n", b"+12\n"]) == {11, 12}


def test_the_guard_minds_no_group_that_is_gone():
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    guard.end({process.pid}, grace=0.1)
    assert not guard.send(process.pid, 0)


def test_the_last_words_are_the_last_line(tmp_path):
    log = tmp_path / "worker.log"
    assert last_words(log) == ""
    log.write_text("first\n" * 10_000 + "RuntimeError: " + "x" * 300 + "\n\n")
    assert last_words(log) == "x" * 200


def test_logs_are_kept_three_times(tmp_path):
    log = tmp_path / "worker.log"
    for run in range(6):
        rotate(log)
        log.write_text(str(run))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "worker.log": "5",
        "worker.log.1": "4",
        "worker.log.2": "3",
        "worker.log.3": "2",
    }
