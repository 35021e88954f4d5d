"""Workers on a Ray cluster, or of Ray on this machine: an actor per latency target and per training at a time (https://ray.io).

A target is measured where a node offers the resource latency_NAME, by one actor that holds this resource, so never twice
at a time. Nodes that measure should not train: start them with --num-cpus=0. A node that does both does so in turns.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from typing import Any

from models.architecture import check_int, check_number
from search import one_line
from search.accuracy.base import AccuracyEvaluator, Progress
from search.engine.base import HERE, TRAINING, TargetSource
from search.engine.tasks import Resource, set_up_process
from search.engine.workers import WorkerEngine
from search.latency.machine import allowed_cores

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


class RayEngine(WorkerEngine):
    """Measure and train on a Ray cluster.

    Args:
        targets: latency targets by name.
        make_evaluator: makes the accuracy evaluator, on a node.
        address: of a running cluster, as ray.init takes it; None starts Ray on this machine, on loopback, with a token that
            others need.
        num_threads: of one training.
        num_cpus, num_gpus: what a training takes of a node; num_cpus None takes one CPU per thread.
        num_parallel: trainings at a time; None for as many as there is room for.
        start_timeout_seconds: how long workers of a role may look for a node with room and start there, before the search
            ends because none of them has one.
        settings: of `WorkerEngine`.

    Raises:
        ValueError: if Ray is not installed, no cluster is reached, or it lacks a resource.
    """

    def __init__(
        self,
        targets: Mapping[str, TargetSource],
        make_evaluator: Callable[[], AccuracyEvaluator],
        address: str | None,
        num_threads: int | None,
        num_cpus: float | None,
        num_gpus: float,
        num_parallel: int | None,
        start_timeout_seconds: float,
        **settings: Any,
    ) -> None:
        needs = {"num_cpus": cpus_of_a_training(num_threads, num_cpus), "num_gpus": num_gpus}
        check_number("engine.num_gpus", num_gpus, 0)
        check_number("engine.start_timeout_seconds", start_timeout_seconds, 1e-3)
        if num_parallel is not None:
            check_int("engine.num_parallel", num_parallel, 1)
        ray = connected(address, [resource_of(name) for name in targets])
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_resources(nodes, list(targets), **needs)
            room = trainings_at_a_time(nodes, **needs)
            parallel = num_parallel or room
            if parallel > room:
                raise ValueError(f"engine.num_parallel={parallel}: the Ray cluster has room for {room} trainings; lower it")
            super().__init__(num_parallel=parallel, **settings)
            evaluator = ray.put(make_evaluator)
            self.workers = [
                ActorWorker(ray, name, source.hosts, ray.put(source.make), start_timeout_seconds, needs_of_measuring(name))
                for name, source in targets.items()
            ]
            self.workers += [
                ActorWorker(ray, TRAINING, (HERE,), evaluator, start_timeout_seconds, needs) for _ in range(parallel)
            ]
            for worker in self.workers:
                worker.restart()
        except BaseException:
            ray.shutdown()
            raise
        self._ray = ray

    def use_evaluator(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        super().use_evaluator(self._ray.put(make_evaluator))
        for worker in self.workers:
            if worker.role == TRAINING:
                self._forget(worker)
                worker.restart()

    def close(self) -> None:
        self._ray.shutdown()  # which ends this job's actors


def cpus_of_a_training(num_threads: int | None, num_cpus: float | None) -> float:
    """CPUs that one training takes. Raises: ValueError if it would use more than that."""
    if num_threads is None:
        raise ValueError("engine=ray needs accuracy.num_threads: nodes may have cores in different numbers")
    if num_cpus is None:
        return num_threads
    check_number("engine.num_cpus", num_cpus, 1e-3)
    if num_threads > num_cpus:
        raise ValueError(f"accuracy.num_threads={num_threads} is more than engine.num_cpus={num_cpus:g}; raise the latter")
    return num_cpus


def resource_of(target: str) -> str:
    """The resource of a node that measures this target."""
    return f"latency_{target}"


def needs_of_measuring(target: str) -> dict[str, Any]:
    """Options of an actor that measures."""
    return {"num_cpus": 0, "resources": {resource_of(target): 1}}


def connected(address: str | None, resources: list[str]) -> Any:
    """Ray, connected to a cluster. Raises: ValueError if it is not installed or no cluster is reached."""
    options: dict[str, Any] = {}
    if address is not None:
        check_reachable(address)
    else:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray then keeps to loopback, on every system
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # for this cluster only, and in no file
        options = {"include_dashboard": False, "num_cpus": len(allowed_cores()), "resources": dict.fromkeys(resources, 1.0)}
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise ValueError("engine=ray needs the package ray, which is not installed: pip install 'hilo-nas[ray]'") from None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **options)
    except Exception as error:  # whatever Ray raises: it has no base class for this
        where = f"engine.address={address}" if address else "Ray on this machine"
        raise ValueError(
            f"{where} is not reached ({one_line(error)}); check that it runs and that ~/.ray/auth_token is its token"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the search without closing running trials
    return ray


def check_reachable(address: str) -> None:
    """Raises: ValueError if nothing answers at an address: Ray would wait for minutes."""
    if address.startswith("ray://"):
        raise ValueError(f"engine.address={address}: search on a machine of the cluster, with engine.address=auto")
    host, colon, port = address.rpartition(":")
    if not colon:  # auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"engine.address={address} is not reached ({one_line(error)}); check that Ray runs there"
        ) from error


def check_resources(nodes: Sequence[Mapping[str, float]], targets: list[str], num_cpus: float, num_gpus: float) -> None:
    """Raises: ValueError naming what no node offers: Ray would wait for it forever."""
    for target in targets:
        if all(node.get(resource_of(target), 0) < 1 for node in nodes):
            raise ValueError(
                f"no node of the Ray cluster offers {resource_of(target)}; start the one that measures this target with "
                f"--num-cpus=0 --resources='{{\"{resource_of(target)}\": 1}}'"
            )
    for name, key, needed in (("CPU", "num_cpus", num_cpus), ("GPU", "num_gpus", num_gpus)):
        most = max(node.get(name, 0) for node in nodes)
        if most < needed:
            raise ValueError(
                f"engine.{key}={needed:g} is more than the {most:g} {name}s of any node of the Ray cluster; lower it"
            )
    if trainings_at_a_time(nodes, num_cpus, num_gpus) == 0:
        raise ValueError(
            f"no node of the Ray cluster has both engine.num_cpus={num_cpus:g} and engine.num_gpus={num_gpus:g}; lower one"
        )


def trainings_at_a_time(nodes: Sequence[Mapping[str, float]], num_cpus: float, num_gpus: float) -> int:
    """How many trainings the nodes have room for."""
    rooms = ((node.get("CPU", 0) / num_cpus, node.get("GPU", 0) / num_gpus if num_gpus else math.inf) for node in nodes)
    return sum(int(min(room)) for room in rooms)


class ActorWorker(Executor):
    """A Ray actor, replaced by another one when it dies.

    Args:
        computes_on: as `TargetSource.hosts`, `HERE` being the node that the actor gets.
        make: a reference to what makes its resource.
        timeout_seconds: how long it may look for a node and start there.
        needs: options of the actor.
    """

    def __init__(
        self, ray: Any, role: str, computes_on: tuple[str, ...], make: Any, timeout_seconds: float, needs: Mapping[str, Any]
    ) -> None:
        self.role = role
        self.make = make
        self._ray = ray
        self._computes_on = computes_on
        self._timeout = timeout_seconds
        self._needs = needs
        self.report: Progress = lambda share: None
        self.task: Future[Any] | None = None
        self._actor: Any = None
        self._node: Future[str] = Future()  # that it starts on
        self._since = 0.0  # it looks for one

    @property
    def hosts(self) -> tuple[str, ...]:
        if not self._node.done() or self._node.exception() is not None:
            return ()
        return tuple(self._node.result() if host == HERE else host for host in self._computes_on)

    @property
    def executor(self) -> Executor:
        return self

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in the actor's process. Ray sends results only, so there are no reports."""
        done: Future[Any] = Future()

        def pass_on(answer: Future[tuple[Any, Exception | None]]) -> None:
            failure = answer.exception()
            if isinstance(failure, self._ray.exceptions.RayTaskError):  # a result that cannot be pickled
                done.set_exception(RuntimeError(one_line(failure)))
            elif failure is not None:  # the actor catches what functions raise: this is Ray's own
                done.set_exception(BrokenExecutor(one_line(failure)))
            else:
                result, error = answer.result()
                done.set_result(result) if error is None else done.set_exception(error)

        self._actor.do.remote(partial(function, *args, **kwargs)).future().add_done_callback(pass_on)
        return done

    def restart(self) -> None:
        self._since = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self.close()
        self._actor = self._ray.remote(_Actor).options(max_concurrency=1, **self._needs).remote(self.make)
        self._node = self._actor.node.remote().future()

    def seek_host(self) -> str | None:
        error = self._node.exception() if self._node.done() else None
        if getattr(error, "actor_init_failed", False) or isinstance(error, self._ray.exceptions.RayTaskError):
            return f"the Ray cluster cannot start a worker for {self.role}: {str(error).strip().splitlines()[-1]}"
        if error is not None:
            log.debug("a worker for %s was lost with its node", self.role)
            self._begin()
        if self.hosts or time.monotonic() - self._since < self._timeout:
            return None
        needs = ", ".join(f"{key}={value}" for key, value in self._needs.items())
        return f"no node of the Ray cluster has started a worker for {self.role} ({needs}) within {self._timeout:g} s"

    def close(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor, no_restart=True)
            self._actor = None


class _Actor:
    """What runs in the actor's process."""

    def __init__(self, make: Callable[[], Resource]) -> None:
        set_up_process(make, lambda share: None)

    def node(self) -> str:
        """The identifier of the node that it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def do(self, function: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """The result and the error of a function: Ray would wrap an error with its own traceback."""
        try:
            return function(), None
        except Exception as error:
            return None, error
