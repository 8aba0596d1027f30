"""What the suite costs, and a bound on each case: a plugin that conftest.py loads.

A case without the mark `slow` fails if it takes more than LIMIT seconds of a processor, on a machine that counts ten million
additions in QUIET seconds; a slower machine has more, and on one slower than TOO_SLOW seconds it is told, not failed. Counted
are this process and those that it started; not counted are compiling (numba's, once an installation) and what `free` encloses.
At the end the dearest cases and the sum of every folder are printed.
"""

import resource
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager

import pytest

LIMIT, QUIET, TOO_SLOW = 3.0, 0.45, 1.0
DEAREST = 20


class _Meter:
    speed = 0.0  # seconds for ten million additions, with all of pytest's workers counting
    free = 0.0  # processor seconds that no case is charged for
    compiling = None  # numba's own clock


def ten_million_additions():
    """Return how many seconds they take."""
    begun, total = time.perf_counter(), 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - begun


def used():
    """Return the processor seconds of this process and of those it has started and waited for."""
    processes = sys.modules.get("tests.processes")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    forked = processes.cpu_seconds() if processes else 0.0
    return time.process_time() + children.ru_utime + children.ru_stime + forked


@contextmanager
def free():
    """Charge no case for what happens here: it is made once for many."""
    begun, before = used(), _Meter.free
    try:
        yield
    finally:
        _Meter.free = before + used() - begun


def _counted():
    return used() - _Meter.free - (_Meter.compiling.duration if _Meter.compiling else 0.0)


class _Compiling:
    """Adds up the seconds in which numba compiles."""

    def __init__(self):
        self.duration, self._depth, self._begun = 0.0, 0, 0.0

    def on_start(self, event):
        if not self._depth:
            self._begun = time.process_time()
        self._depth += 1

    def on_end(self, event):
        self._depth -= 1
        if not self._depth:
            self.duration += time.process_time() - self._begun


def pytest_collection_finish(session):
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        from numba.core import event

        class Listener(_Compiling, event.Listener):
            pass

        _Meter.compiling = Listener()
        event.register("numba:compile", _Meter.compiling)
        _Meter.speed = ten_million_additions()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    item.cost = _counted()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when != "call":
        return
    cost = _counted() - item.cost
    allowed = LIMIT * max(1.0, _Meter.speed / QUIET)
    slow = item.get_closest_marker("slow") is not None
    item.user_properties.append(("cpu_seconds", cost))
    report.user_properties = list(item.user_properties)
    if report.passed and not slow and cost > allowed:
        _Meter.speed = max(_Meter.speed, ten_million_additions())  # perhaps others have come to compute here since
        allowed = LIMIT * max(1.0, _Meter.speed / QUIET)
    if report.passed and not slow and cost > allowed:
        said = (
            f"{item.nodeid} took {cost:.1f} s of a processor; a case without the mark `slow` may take {allowed:.1f} s here "
            f"({LIMIT:.0f} s on a machine that makes ten million additions in {QUIET} s; this one takes {_Meter.speed:.2f} s)"
        )
        if _Meter.speed > TOO_SLOW:
            warnings.warn(said, stacklevel=1)
        else:
            report.outcome, report.longrepr = "failed", said


def pytest_terminal_summary(terminalreporter):
    costs = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", None) == "call" and "cpu_seconds" in found:
                costs[report.nodeid] = found["cpu_seconds"]
    if len(costs) <= DEAREST:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"processor seconds: {sum(costs.values()):.0f} of {len(costs)} cases")
    for name, cost in sorted(costs.items(), key=lambda pair: -pair[1])[:DEAREST]:
        write(f"{cost:8.2f}  {name}")
    folders = Counter()
    for name, cost in costs.items():
        folders[name.partition("::")[0].rpartition("/")[0]] += cost
    write("by folder:")
    for folder, cost in folders.most_common():
        write(f"{cost:8.1f}  {folder}")
