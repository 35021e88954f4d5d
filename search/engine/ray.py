"""A Ray cluster, or Ray on this machine: an actor for each device and for each training that may go on at a time (https://ray.io).

A device is measured where a node offers the resource latency_NAME, by one actor that holds this resource, so never twice at
once. Nodes that measure had better train nothing: start them with --num-cpus=0. Where a node does both, it does so in turns.
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
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from models.architecture import check_int, check_number
from search import one_line
from search.accuracy.base import AccuracyEvaluator
from search.engine.base import HERE, Device, Engine
from search.engine.work import TRAINING, Work, carried_out, made
from search.latency.machine import allowed_cores

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


class RayEngine(Engine):
    """Measure and train on a Ray cluster.

    address: of a running cluster, as ray.init takes it; None starts Ray on this machine, on loopback, with a token that
    others need. num_threads: of one training. num_cpus, num_gpus: what it takes of a node; num_cpus None for a CPU a thread.
    num_parallel: trainings at once; None for as many as there is room for. start_timeout_seconds: how long a worker may look
    for a node with room and start there. Others go on meanwhile; work that none of them takes ends the search. The rest as
    in Engine.
    Raises: ValueError if Ray is not installed, no cluster is reached, or it lacks a resource.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
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
        ray = connected(address, [resource_of(name) for name in devices])
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_resources(nodes, list(devices), **needs)
            room = trainings_at_once(nodes, **needs)
            parallel = num_parallel or room
            if parallel > room:
                raise ValueError(f"engine.num_parallel={parallel}: the Ray cluster has room for {room} trainings")
            super().__init__(devices, num_parallel=parallel, **settings)
            evaluator = ray.put(make_evaluator)
            lanes = [
                ActorLane(ray, name, device.sites, ray.put(device.make_target), start_timeout_seconds, measuring(name))
                for name, device in devices.items()
            ]
            lanes += [ActorLane(ray, TRAINING, (HERE,), evaluator, start_timeout_seconds, needs) for _ in range(parallel)]
            for lane in lanes:
                lane.restart()
            self.open(lanes)
        except BaseException:
            ray.shutdown()
            raise
        self._ray = ray

    def train_with(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        super().train_with(self._ray.put(make_evaluator))
        self._verified = [lane for lane in self._verified if lane.place != TRAINING]
        for lane in self._lanes:
            if lane.place == TRAINING:
                lane.restart()

    def close(self) -> None:
        self._ray.shutdown()  # which ends this job's actors


def cpus_of_a_training(num_threads: int | None, num_cpus: float | None) -> float:
    """Raises: ValueError if it would take more than it says."""
    if num_threads is None:
        raise ValueError("engine=ray needs accuracy.num_threads: nodes may have cores in different numbers")
    if num_cpus is None:
        return num_threads
    check_number("engine.num_cpus", num_cpus, 1e-3)
    if num_threads > num_cpus:
        raise ValueError(f"accuracy.num_threads={num_threads} is more than engine.num_cpus={num_cpus:g}; raise that")
    return num_cpus


def resource_of(device: str) -> str:
    """What a node offers that measures this device."""
    return f"latency_{device}"


def measuring(device: str) -> dict[str, Any]:
    """What a worker that measures takes of a node."""
    return {"num_cpus": 0, "resources": {resource_of(device): 1}}


def connected(address: str | None, resources: list[str]) -> Any:
    """Ray, in touch with a cluster. Raises: ValueError if it is not installed or no cluster is reached."""
    own: dict[str, Any] = {}
    if address is not None:
        check_reachable(address)
    else:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray then keeps to loopback, on every system
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # for this cluster alone, and in no file
        own = {"include_dashboard": False, "num_cpus": len(allowed_cores()), "resources": dict.fromkeys(resources, 1.0)}
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise ValueError("engine=ray needs the package ray, which is not installed: pip install 'hilo-nas[ray]'") from None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **own)
    except Exception as error:  # whatever Ray raises: it has no base class for this
        where = f"engine.address={address}" if address else "Ray on this machine"
        raise ValueError(
            f"{where} is not reached ({one_line(error)}); see that it runs and that its token is here"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the search without closing what is under way
    return ray


def check_reachable(address: str) -> None:
    """Raises: ValueError if nothing answers there, for which Ray would wait for minutes."""
    if address.startswith("ray://"):
        raise ValueError(f"engine.address={address}: search on a machine of the cluster, with engine.address=auto")
    host, colon, port = address.rpartition(":")
    if not colon:  # auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"engine.address={address} is not reached ({one_line(error)}); see that Ray runs there") from error


def check_resources(nodes: Sequence[Mapping[str, float]], devices: list[str], num_cpus: float, num_gpus: float) -> None:
    """Raises: ValueError naming what no node offers: Ray would wait for it for good."""
    for device in devices:
        if all(node.get(resource_of(device), 0) < 1 for node in nodes):
            raise ValueError(
                f"no node of the Ray cluster offers {resource_of(device)}; start the one that measures this device with "
                f"--num-cpus=0 --resources='{{\"{resource_of(device)}\": 1}}'"
            )
    for name, key, needed in (("CPU", "num_cpus", num_cpus), ("GPU", "num_gpus", num_gpus)):
        most = max(node.get(name, 0) for node in nodes)
        if most < needed:
            raise ValueError(
                f"engine.{key}={needed:g} is more than the {most:g} {name}s of any node of the Ray cluster; lower it"
            )
    if trainings_at_once(nodes, num_cpus, num_gpus) == 0:
        raise ValueError(
            f"no node of the Ray cluster has both engine.num_cpus={num_cpus:g} and engine.num_gpus={num_gpus:g}"
        )


def trainings_at_once(nodes: Sequence[Mapping[str, float]], num_cpus: float, num_gpus: float) -> int:
    """As many as the nodes have room for."""
    rooms = ((node.get("CPU", 0) / num_cpus, node.get("GPU", 0) / num_gpus if num_gpus else math.inf) for node in nodes)
    return sum(int(min(room)) for room in rooms)


class ActorLane:
    """A Ray actor, replaced by another one when it dies.

    computes_on: as in Device, HERE being the node that the actor gets. make: a reference to what makes what it holds.
    timeout_seconds: how long it may look for a node and start there. needs: options of the actor.
    """

    def __init__(
        self, ray: Any, place: str, computes_on: tuple[str, ...], make: Any, timeout_seconds: float, needs: Mapping[str, Any]
    ) -> None:
        self.place = place
        self.make = make
        self.share = 0.0  # Ray tells of results alone
        self._ray = ray
        self._computes_on = computes_on
        self._timeout = timeout_seconds
        self._needs = needs
        self._actor: Any = None
        self._node: Future[str] = Future()  # that it starts on
        self._since = 0.0  # it looks for one

    @property
    def sites(self) -> tuple[str, ...]:
        if not self._node.done() or self._node.exception() is not None:
            return ()
        return tuple(self._node.result() if site == HERE else site for site in self._computes_on)

    def start(self, work: Work) -> Future[Any]:
        done: Future[Any] = Future()

        def pass_on(found: Future[Any]) -> None:
            error = found.exception()
            if isinstance(error, self._ray.exceptions.RayTaskError):  # a result that does not travel
                done.set_exception(RuntimeError(one_line(error)))
            elif error is not None:  # the actor catches what work raises: this is Ray's own
                done.set_exception(BrokenExecutor(one_line(error)))
            else:
                settle(done, *found.result())

        self._actor.do.remote(work).future().add_done_callback(pass_on)
        return done

    def restart(self) -> None:
        self._since = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self.close()
        self._actor = self._ray.remote(_Worker).options(max_concurrency=1, **self._needs).remote(self.make)
        self._node = self._actor.node.remote().future()

    def seek(self) -> str | None:
        error = self._node.exception() if self._node.done() else None
        if getattr(error, "actor_init_failed", False) or isinstance(error, self._ray.exceptions.RayTaskError):
            return f"the Ray cluster cannot start a worker for {self.place}: {str(error).strip().splitlines()[-1]}"
        if error is not None:
            log.debug("a worker for %s went with its node", self.place)
            self._begin()
        if self.sites or time.monotonic() - self._since < self._timeout:
            return None
        needs = ", ".join(f"{key}={value}" for key, value in self._needs.items())
        return f"no node of the Ray cluster has started a worker for {self.place} ({needs}) within {self._timeout:g} s"

    def close(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor, no_restart=True)
            self._actor = None


def settle(done: Future[Any], value: Any, error: Exception | None) -> None:
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)


class _Worker:
    """What runs in the actor's process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.held = made(make)

    def node(self) -> str:
        """The identifier of the node that it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def do(self, work: Work) -> tuple[Any, Exception | None]:
        """The result, or what went wrong: Ray would wrap it with its own traceback."""
        try:
            return carried_out(work, self.held, lambda share: None), None
        except Exception as error:
            return None, error
