"""`python -m benchmarks.faults`: what becomes of a study when something dies, hangs, fills up or goes away.

Every fault is the real thing done to a real search, small as it is: processes are killed by SIGKILL or by the kernel for
their memory, stopped by SIGSTOP, a database server is stopped, its connections are cut, a file system fills up. The
search goes on by itself or the command is run again, and the study is compared with what it had finished before: nothing
may be lost or changed, no network trained twice, and there must be exactly as many trials as were asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.support.commands import ROOT
from tests.support.postgresql import PostgreSql, programs
from tests.support.search_process import NAME, SearchProcess, Tally

LOCKED_AGAIN = "is locked again"  # in the log when a database has come back
REPLACED = "it was replaced"
FEW = 6  # trials of a search that is started anew for every fault
Strike = Callable[[SearchProcess, random.Random], None]


class CannotBeDone(Exception):
    """This machine lacks what a kind of fault needs."""


def repeated(times: int, strike: Strike, is_small: bool = False) -> Tally:
    """A search per fault, which ends it; then the command is run again.

    is_small: whether its disk is small.
    """
    tally, rng = Tally(), random.Random(0)
    for _ in track(range(times), strike.__name__):
        with (
            tempfile.TemporaryDirectory() as folder,
            small_disk(Path(folder)) if is_small else contextlib.nullcontext(),
            SearchProcess(Path(folder), FEW) as search,
        ):
            search.start()
            strike(search, rng)
            tally.messages[without_folder(search.end())] += 1
            search.record()
            search.finish()
            tally.times += 1
            search.count(tally)
    return tally


def within(times: int, strike: Strike, phase: str, sign: str, **options: Any) -> Tally:
    """One search that goes on by itself after every fault; `sign` is in its log then."""
    tally, rng = Tally(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder, SearchProcess(Path(folder), 3 * times + 4, **options) as search:
        search.start()
        for number in track(range(times), sign):
            search.wait_for(f"phase: {phase}", search.log().count(f"phase: {phase}") + 1)
            search.record()
            strike(search, rng)
            search.wait_for(sign, number + 1)
            tally.times += 1
        message = next(line for line in reversed(search.log().splitlines()) if sign in line)
        tally.messages[message.partition("search.")[2]] += times
        search.end()
        search.count(tally)
    return tally


def between_searches(times: int, spoil: Callable[[Path, random.Random], Callable[[], object]]) -> Tally:
    """A study that is made longer again and again, each time after a try that must fail.

    spoil: does something to outputs, and returns what undoes it.
    """
    tally, rng = Tally(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder)), SearchProcess(Path(folder), 3) as search:
        search.finish()
        for _ in track(range(times), spoil.__name__):
            search.record()
            undo = spoil(Path(folder) / "outputs", rng)
            search.n_trials += 1
            tally.messages[without_folder(search.fail())] += 1
            undo()
            search.finish()
            tally.times += 1
            tally.inexact += not search.is_exact()
        search.count(tally)
    return tally


def without_folder(message: str) -> str:
    """A message without the folder, which is another one every time."""
    return re.sub(r"/tmp/\S*?/outputs", "outputs", message)


def coordinator_killed(search: SearchProcess, rng: random.Random) -> None:
    lasts = {"study": 15.0, "phase: measuring": 0.4, "phase: training": 0.3, "phase: writing": 0.1}  # seconds, about
    chosen = rng.choice(list(lasts))
    search.wait_for(chosen, 1 if chosen == "study" else rng.randint(1, FEW))
    time.sleep(rng.uniform(0, lasts[chosen]))
    if search.running.returncode is not None:
        raise RuntimeError("the search was over before it was killed")
    search.running.send(signal.SIGKILL)


def trainer_killed(search: SearchProcess, rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 0.2))
    os.kill(search.worker("training"), signal.SIGKILL)


def measurer_killed(search: SearchProcess, rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 0.3))
    os.kill(search.worker("first"), signal.SIGKILL)


def training_hangs(search: SearchProcess, rng: random.Random) -> None:
    os.kill(search.worker("training"), signal.SIGSTOP)


def measurement_hangs(search: SearchProcess, rng: random.Random) -> None:
    os.kill(search.worker("first"), signal.SIGSTOP)


def trainer_out_of_memory(search: SearchProcess, rng: random.Random) -> None:
    """Moved to a group that may have a megabyte, it needs more at its next step, and the kernel kills it."""
    pid = search.worker("training")
    (GROUP / "cgroup.procs").write_text(str(pid))


GROUP = Path("/sys/fs/cgroup/memory/hilo-nas-faults")


def out_of_memory(times: int) -> Tally:
    try:
        try:
            GROUP.mkdir(exist_ok=True)
            (GROUP / "memory.limit_in_bytes").write_text(str(2**20))
        except OSError as error:
            raise CannotBeDone(f"no group of the kernel's memory controller can be made ({error})") from error
        return within(times, trainer_out_of_memory, "training", REPLACED)
    finally:
        with contextlib.suppress(OSError):
            GROUP.rmdir()


def database_restarted(server: PostgreSql, search: SearchProcess, rng: random.Random) -> None:
    server.stop()
    time.sleep(rng.uniform(0, 3))
    server.start()


def connections_cut(server: PostgreSql, search: SearchProcess, rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 0.3))
    server.cut_connections()


def disk_full(search: SearchProcess, rng: random.Random) -> None:
    search.wait_for("phase: writing", rng.randint(1, FEW - 2))
    filler = search.folder / "outputs" / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
    message = search.end()
    if search.running.returncode == 0:
        raise RuntimeError(f"the search did without a disk: {message}")
    filler.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put outputs on a file system of its own, with room for a few megabytes."""
    target = folder / "outputs"
    target.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(target)]).returncode:
        raise CannotBeDone("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def cut_short(outputs: Path, rng: random.Random) -> Callable[[], object]:
    """Cut the database to anything between a hundred bytes and half of it."""
    file = outputs / NAME / "study.db"
    copy = shutil.copy(file, outputs / "copy.db")
    with file.open("r+b") as opened:
        opened.truncate(rng.randrange(100, file.stat().st_size // 2))

    def undo() -> None:
        for left in file.parent.glob("study.db-*"):
            left.unlink()  # SQLite's files beside it belong to the spoiled one
        shutil.copy(copy, file)

    return undo


def read_only(outputs: Path, rng: random.Random) -> Callable[[], object]:
    subprocess.run(["mount", "-o", "remount,ro", str(outputs)], check=True)
    return partial(subprocess.run, ["mount", "-o", "remount,rw", str(outputs)], check=True)


def with_database(times: int, strike: Callable[[PostgreSql, SearchProcess, random.Random], None]) -> Tally:
    if programs() is None:
        raise CannotBeDone("PostgreSQL's programs are not installed")
    with tempfile.TemporaryDirectory() as folder, PostgreSql(Path(folder)) as server:
        arguments = ["storage=postgresql", f"storage.url={server.url}"]
        return within(times, partial(strike, server), "writing", LOCKED_AGAIN, arguments=arguments, url=server.url)


def ray_node_killed(times: int) -> Tally:
    """Two nodes: one measures, the other one trains and is killed; another one takes its place."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes' workers
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise CannotBeDone("Ray is not installed") from error
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"latency_first": 1}})
    nodes = [cluster.add_node(num_cpus=1)]

    def strike(search: SearchProcess, rng: random.Random) -> None:
        time.sleep(rng.uniform(0, 0.5))
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))

    try:
        arguments = ["engine=ray", f"engine.address={cluster.address}", "engine.num_parallel=1"]
        return within(times, strike, "training", REPLACED, arguments=arguments)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


KINDS: dict[str, Callable[[int], Tally]] = {
    "coordinator killed": lambda times: repeated(times, coordinator_killed),
    "trainer killed": lambda times: within(times, trainer_killed, "training", REPLACED),
    "measurer killed": lambda times: within(times, measurer_killed, "measuring", REPLACED),
    "trainer out of memory": out_of_memory,
    "training hangs": lambda times: within(
        times, training_hangs, "training", REPLACED, arguments=["engine.train_timeout_seconds=20"]
    ),
    "measurement hangs": lambda times: within(
        times, measurement_hangs, "measuring", REPLACED, arguments=["engine.measure_timeout_seconds=20"]
    ),
    "database stopped and started": lambda times: with_database(times, database_restarted),
    "connections to the database cut": lambda times: with_database(times, connections_cut),
    "disk full": lambda times: repeated(times, disk_full, is_small=True),
    "folder read-only": lambda times: between_searches(times, read_only),
    "study's file cut short": lambda times: between_searches(times, cut_short),
    "Ray node killed": ray_node_killed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    options = parser.parse_args()
    console = Console(width=150)
    table = Table(title="Faults, and what became of the studies", title_justify="left")
    for header in ("fault", "times", "finished before", "after", "lost", "duplicated", "not exact"):
        table.add_column(header, justify="left" if header == "fault" else "right")
    table.add_column("message", overflow="fold")
    is_sound = True
    for kind in options.kinds:
        try:
            tally = KINDS[kind](options.times)
        except CannotBeDone as error:
            table.add_row(kind, "0", *[""] * 5, f"cannot be done here: {error}")
            continue
        except Exception as error:  # of this kind alone: the others have their rows
            console.print_exception()
            table.add_row(kind, "?", *[""] * 5, f"went wrong: {type(error).__name__}: {error}")
            is_sound = False
            continue
        messages = "; ".join(text for text, _ in tally.messages.most_common(2))
        counts = (tally.times, tally.before, tally.after, tally.lost, tally.duplicated, tally.inexact)
        is_sound &= not any(counts[3:])
        table.add_row(kind, *map(str, counts), messages)
        console.print(f"{kind}: {counts}")
    console.print(table)
    sys.exit(0 if is_sound else 1)


if __name__ == "__main__":
    main()
