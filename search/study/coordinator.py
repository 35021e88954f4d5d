"""The coordinator: fills a study with trials until it is complete, or every network of the space is evaluated.

As many trials run at a time as the engine has use for, each as an asyncio task: it is asked for, evaluated (evaluate.py) and
written (writer.py). Killed at any moment, a study loses at most the running trials, and ends with as many as were asked for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from models.architecture import Architecture
from search import SearchStopped, one_line
from search.engine.base import Engine, EngineFailure
from search.latency.block_model import BlockModel, Prediction
from search.study.convergence import Convergence, Outlook
from search.study.drift import recent_slowdown
from search.study.evaluate import Rules, evaluate
from search.study.front import front, front_hypervolume
from search.study.known import Known, OverLimits, RuledOut
from search.study.limits import COSTS, Values
from search.study.targets import Target, references_ms
from search.study.trial import EXPECTED_GAIN, ORIGIN, SAMPLED, TrialRecord, TrialResult
from search.study.writer import StudyWriter

log = logging.getLogger(__name__)

MAX_OVER_LIMITS = 1000  # trials in a row that limits of parameters or multiply-accumulates rule out, before a search ends
MAX_UNMEASURED = 50  # trials in a row: the next is measured, or a wrong block model could rule out everything forever
PUBLISH_SHARE = 0.01  # of the search's time at most is spent on publishing
POLL_SECONDS = 0.25


class View(Protocol):
    """Listener for search progress; see results/view.py."""

    def trial_started(self, number: int, architecture: Architecture) -> None: ...

    def phase(self, number: int, text: str, share: float) -> None: ...

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None: ...

    def trial_failed(self, number: int, reason: str) -> None: ...

    def trial_skipped(self, number: int, reason: str) -> None: ...


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands.

    Attributes:
        model_errors: median relative error of each target's block model, where it has made predictions.
        slowdowns: the anchor's time on each target in the latest measurements, over its calibrated time.
        outlook: of further networks, where that ends the search.
    """

    num_finished: int
    num_wanted: int
    front_size: int
    hypervolume: float
    seconds_left: float
    num_skipped: int = 0
    model_errors: Mapping[str, float] = field(default_factory=dict)
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    outlook: Outlook | None = None


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is being evaluated.

    Attributes:
        predictions: its latencies by the block models, when it began.
        may_skip: whether its measurement may be skipped because of these predictions.
        expected_gain: as in `TrialRecord`.
    """

    number: int
    architecture: Architecture
    origin: str
    parameters: Mapping[str, bool | int | float]
    predictions: Mapping[str, Prediction]
    may_skip: bool
    expected_gain: float | None = None


@dataclass
class Coordinator:
    """Runs trials until the study has enough finished ones; skipped and failed trials do not count.

    Attributes:
        models: the block model of each target.
        cost: parameters and multiply-accumulates of an architecture.
        save_samples: stores the raw samples of a trial's measurements.
        publish: shows all finished trials elsewhere, such as on the dashboard, when the front has changed.
        clock: in seconds.
        convergence: ends the search when further networks are expected to add too little; None to go on until enough trials
            are finished.
    """

    writer: StudyWriter
    engine: Engine
    targets: Mapping[str, Target]
    rules: Rules
    models: Mapping[str, BlockModel]
    cost: Callable[[Architecture], tuple[int, int]]
    save_samples: Callable[[int, Architecture, TrialResult], None]
    publish: Callable[[list[TrialRecord]], None]
    view: View
    max_consecutive_failures: int
    clock: Callable[[], float] = time.monotonic
    convergence: Convergence | None = None
    _finished: list[TrialRecord] = field(default_factory=list)
    _latest_results: dict[str, TrialResult] = field(default_factory=dict)  # of each network, by key
    _front: list[TrialRecord] = field(default_factory=list)
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))  # of each network, by key
    _tried: set[str] = field(default_factory=set)  # keys of networks that are being or were evaluated
    _space_size: int = 0
    _num_skipped: int = 0
    _num_failures: int = 0  # in a row
    _num_unmeasured: int = 0  # in a row
    _num_over_limits: int = 0  # in a row
    _num_wanted: int = 0
    _num_before: int = 0  # finished when this run began
    _start: float = 0.0
    _end: float = math.inf
    _is_published: bool = True
    _publish_at: float = 0.0

    async def run(self, n_trials: int, timeout_minutes: float | None) -> bool:
        """Run trials until n_trials are finished, those of earlier runs included.

        Returns:
            Whether n_trials are finished, the space is used up or the search has converged; False if the time was up
            before.

        Raises:
            SearchStopped: after several failures in a row.
        """
        self.recover()
        self._num_wanted, self._start, self._num_before = n_trials, self.clock(), len(self._finished)
        self._end = math.inf if timeout_minutes is None else self._start + 60 * timeout_minutes
        try:
            while True:
                if self.clock() <= self._end and self._has_room():
                    self._begin()
                    await asyncio.sleep(0)  # let it start, and others end
                elif not self._running:
                    break
                else:
                    await asyncio.wait(self._running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
                self._publish_when_due()
            self.writer.close_strays()  # trials that a killed run left open
        except BaseException:
            self._stop()
            raise
        return len(self._finished) >= n_trials or self._is_used_up() or self._has_converged()

    def recover(self) -> None:
        """Read where the study stands; `run` begins with it."""
        recovered = self.writer.recover()
        self._finished, self._tried = recovered.finished, recovered.tried
        self._space_size = self.writer.space.num_architectures()
        self._num_skipped, self._num_unmeasured = recovered.num_skipped, recovered.num_unmeasured
        for record in self._finished:
            self._learn(record)
        self._front = front(self._finished)

    def _has_room(self) -> bool:
        """Whether another trial is wanted, and the engine has a use for it. Never exceed the trial budget."""
        if self._is_used_up() or self._has_converged():
            return False
        return len(self._running) < min(self.engine.num_trials, self._num_wanted - len(self._finished))

    def _is_used_up(self) -> bool:
        """Whether every network of the space is being or was evaluated; those that failed or were skipped count."""
        return len(self._tried) >= self._space_size

    def _has_converged(self) -> bool:
        """Whether further networks are expected to add too little."""
        return self.convergence is not None and self.convergence.has_converged

    def _begin(self) -> None:
        """Ask for a trial and start to evaluate it."""
        trial, architecture = self.writer.ask()
        self._tried.add(architecture.key)
        predictions = {
            name: prediction
            for name, model in self.models.items()
            if (prediction := model.predict(architecture)) is not None
        }
        may_skip = self._num_unmeasured < MAX_UNMEASURED
        if not may_skip:
            self._num_unmeasured = 0  # this one is measured
        origin = trial.user_attrs.get(ORIGIN, SAMPLED)
        expected_gain = trial.user_attrs.get(EXPECTED_GAIN)
        running = RunningTrial(trial.number, architecture, origin, trial.params, predictions, may_skip, expected_gain)
        self._running.add(asyncio.create_task(self._run_trial(running)))

    async def _run_trial(self, trial: RunningTrial) -> None:
        """Evaluate a trial and write what became of it; trials of the same network take turns."""
        self.view.trial_started(trial.number, trial.architecture)
        async with self._locks[trial.architecture.key]:
            try:
                costs = dict(zip(COSTS, self.cost(trial.architecture), strict=True))
                result = await self._evaluate(trial, costs)
            except Exception as error:
                if isinstance(error, SearchStopped) and not isinstance(error, EngineFailure):  # which fails this trial only
                    raise
                log.debug("trial %d failed", trial.number, exc_info=True)
                self._fail(trial, one_line(error))
                return
            if isinstance(result, RuledOut | OverLimits):
                self._skip(trial, result, costs)
            else:
                self._finish(trial, result, costs)

    async def _evaluate(self, trial: RunningTrial, costs: Values) -> TrialResult | RuledOut | OverLimits:
        known = Known(
            self._latest_results.get(trial.architecture.key),
            trial.predictions if trial.may_skip else {},
            [member.result for member in self._front],
            costs,
            trial.origin != SAMPLED,
        )

        def report(text: str, share: float) -> None:
            self.view.phase(trial.number, text, share)

        return await evaluate(trial.architecture, known, self.engine, self.targets, self.rules, report)

    def _finish(self, trial: RunningTrial, result: TrialResult, costs: Mapping[str, int]) -> None:
        self.view.phase(trial.number, "writing", 0.0)
        if result.measured:
            self.save_samples(trial.number, trial.architecture, result)
            result = result.without_samples()
        predicted_ms = {name: prediction.latency_ms for name, prediction in trial.predictions.items()}
        record = TrialRecord(
            number=trial.number,
            architecture=trial.architecture,
            result=result,
            **costs,
            origin=trial.origin,
            parameters=dict(trial.parameters),
            predicted_ms=predicted_ms,
            expected_gain=trial.expected_gain,
        )
        self.writer.finish(record)
        self._num_failures = self._num_over_limits = 0
        self._num_unmeasured = 0 if result.measured else self._num_unmeasured + 1
        before = self._front
        self._learn(record)
        self._finished.append(record)
        self._update_front(record)
        self._is_published &= self._front == before
        self.view.trial_finished(record, self._progress())

    def _skip(self, trial: RunningTrial, ruled_out: RuledOut | OverLimits, costs: Values) -> None:
        reason = self.writer.skip(trial.number, trial.architecture, ruled_out, costs)
        self._num_skipped += 1
        self.view.trial_skipped(trial.number, reason)
        if isinstance(ruled_out, RuledOut):
            self._num_unmeasured += 1
            self._num_over_limits = 0
            return
        self._num_over_limits += 1
        if self._num_over_limits >= MAX_OVER_LIMITS:
            raise SearchStopped(
                f"stopped after {MAX_OVER_LIMITS:,} networks in a row that are over the limits; the last one was "
                f"{reason}. Raise these limits, or take sampler=surrogate, which keeps to them"
            )

    def _fail(self, trial: RunningTrial, reason: str) -> None:
        self.writer.fail(trial.number, trial.architecture, reason)
        self._num_failures += 1
        self._num_unmeasured = 0
        self.view.trial_failed(trial.number, reason)
        if self._num_failures >= self.max_consecutive_failures:
            raise SearchStopped(f"stopped after {self._num_failures} failed trials in a row; the last one failed: {reason}")

    def _learn(self, record: TrialRecord) -> None:
        if self.convergence is not None:
            self.convergence.observe(record)
        self._latest_results[record.architecture.key] = record.result
        if self.rules.halving is not None:
            self.rules.halving.observe(record)
        for name, latency in record.result.latencies.items():
            if latency.measured:
                self.models[name].observe(record.architecture, latency.latency_ms, record.predicted_ms.get(name))
                target = self.targets[name]
                calibration = target.calibration.with_kernels_of(latency)
                self.targets = {**self.targets, name: replace(target, calibration=calibration)}

    def _update_front(self, record: TrialRecord) -> None:
        """The front with one more trial."""
        is_repeat = any(member.architecture.key == record.architecture.key for member in self._front)
        if is_repeat:  # measured again, it may leave the front to what it dominated
            self._front = front(self._finished)
        else:
            self._front = front([*self._front, record])

    def _collect(self) -> None:
        """Forget the trials that ended. Raises: the exception of a task that did not write what became of its trial."""
        ended = {task for task in self._running if task.done()}
        self._running -= ended
        for error in [task.exception() for task in ended]:  # all of them: asyncio logs exceptions that nobody has looked at
            if error is not None:
                raise error

    def _publish_when_due(self) -> None:
        """Show the front if it has changed, but not so often that it would take much of the time."""
        now = self.clock()
        if not self._is_published and now >= self._publish_at:
            self.writer.retry(lambda: self.publish(self._finished))
            self._is_published = True
            self._publish_at = now + (self.clock() - now) / PUBLISH_SHARE

    def _progress(self) -> SearchProgress:
        now = self.clock()
        seconds_each = (now - self._start) / (len(self._finished) - self._num_before)
        errors = {name: model.median_error for name, model in self.models.items()}
        slowdowns = {name: recent_slowdown(self._finished, name) for name in self.targets}
        return SearchProgress(
            len(self._finished),
            self._num_wanted,
            len(self._front),
            front_hypervolume(self._front, references_ms(self.targets)),
            max(0.0, min(seconds_each * (self._num_wanted - len(self._finished)), self._end - now)),
            self._num_skipped,
            {name: error for name, error in errors.items() if error is not None},
            {name: slowdown for name, slowdown in slowdowns.items() if slowdown is not None},
            None if self.convergence is None else self.convergence.outlook(),
        )

    def _stop(self) -> None:
        """Cancel what runs, and close its trials."""
        for task in self._running:
            task.cancel()
            if task.done() and not task.cancelled():
                task.exception()  # asyncio logs exceptions that nobody has looked at
        self.writer.interrupt()
