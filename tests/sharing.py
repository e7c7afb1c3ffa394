"""The tests shared among the cores: a forked process on each, which takes one file of tests after the other.

pytest-xdist would do it, and more, but the tests are to need nothing beside pytest. Forked after the tests were
collected, a worker has torch already. Where a fork isn't safe (a GPU in use, not Linux), and for a few tests, or
under a debugger, pytest's own loop runs them one after the other.
"""

import contextlib
import itertools
import multiprocessing
import os
import sys
from multiprocessing import connection

import pytest
import torch

MOST_WORKERS = 4  # each takes up to 2 GiB
FEW_TESTS = 50  # that are done before workers would be worth it


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """In place of pytest's own loop; None lets that one run."""
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS) if sys.platform == "linux" else 1
    options = session.config.option
    wants_one = options.usepdb or options.collectonly or options.capture == "no"
    not_worth_it = workers == 1 or len(session.items) < FEW_TESTS
    not_safe = torch.cuda.is_available()  # it can't be used after a fork
    if wants_one or not_worth_it or not_safe or session.testsfailed:
        return None

    files = [list(items) for _, items in itertools.groupby(session.items, key=lambda item: item.path)]
    files.sort(key=lambda items: items[0].path.name not in LONGEST)
    session.config._tmp_path_factory.getbasetemp()  # one folder, which this process cleans up
    context = multiprocessing.get_context("fork")
    crew = {}
    for _ in range(workers):
        here, there = context.Pipe()
        process = context.Process(target=work, args=(session, files, there), daemon=False)
        process.start()
        there.close()
        crew[here] = process
    try:
        hand_out(session, files, crew)
    finally:
        for process in crew.values():
            process.kill()
            process.join()
    return True


LONGEST = ("test_training.py", "test_docs.py", "test_claims.py")  # first, so that none is left for the end


def hand_out(session, files: list[list], crew: dict) -> None:
    """Give each worker that asks a file, and tell pytest what they report."""
    config = session.config
    todo = list(range(len(files)))
    reported = set()
    while crew:
        for worker in connection.wait(list(crew)):
            try:
                kind, content = worker.recv()
            except EOFError:
                crew.pop(worker).join()
                continue
            if kind == "next":
                worker.send(todo.pop(0) if todo else None)
                continue
            if kind == "warning":
                config.hook.pytest_warning_recorded.call_historic(kwargs=content)
                continue
            report = config.hook.pytest_report_from_serializable(config=config, data=content)
            config.hook.pytest_runtest_logreport(report=report)
            if report.when == "teardown":
                reported.add(report.nodeid)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    lost = [item.nodeid for item in session.items if item.nodeid not in reported]
    if lost:
        pytest.exit(f"{len(lost)} tests did not end, the first {lost[0]}: the process that ran it died", returncode=1)


class Sender:
    """A plugin of the worker: reports go to the process that prints."""

    def __init__(self, config, home: connection.Connection):
        self.config = config
        self.home = home

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.home.send(("report", data))

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        warning_message.source = None  # an object of this process
        content = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self.home.send(("warning", content))


def work(session, files: list[list], home: connection.Connection) -> None:
    """What a worker does: the tests of one file after the other, until none is left."""
    config = session.config
    plugins = config.pluginmanager
    plugins.unregister(name="terminalreporter")
    plugins.register(Sender(config, home))
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # its files are those of all workers
    capture.start_global_capturing()

    def tests():
        while True:
            home.send(("next", None))
            number = home.recv()
            if number is None:
                return
            yield from files[number]

    with contextlib.suppress(KeyboardInterrupt):  # the process that prints has it, too
        for item, following in itertools.pairwise(itertools.chain(tests(), [None])):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    home.close()
    os._exit(0)  # what pytest does at its end is for the process that prints
