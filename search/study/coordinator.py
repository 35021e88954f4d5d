"""The coordinator: fills a study with trials until it is complete. The study's only writer.

As many trials are under way as the engine has use for. Each is asked for, judged step by step (objective.py) while others
are, and told. Killed at any moment, a study loses at most the trials under way, and ends with as many as were asked for.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from models.architecture import Architecture
from search import SearchStopped, one_line
from search.engine.base import POLL_SECONDS, Engine, Job
from search.latency.block_model import CONFIDENCE, BlockModel, Prediction
from search.space.space import Parameters, Space
from search.study.evaluate import Context, Judgement, Objective, Outcome, Step, constraint_values
from search.study.storage import Patience, is_away, quiet_experimental
from search.study.trial import (
    INTERRUPTED,
    SAMPLED,
    SKIPPED,
    Finished,
    count_skipped,
    describe,
    finished_trials,
    front,
    front_hypervolume,
)

log = logging.getLogger(__name__)

SUPERNET = "supernet"  # attribute of a study: the file of the weights that its networks are scored with
SHARED_SECONDS = "shared_weights_seconds"  # attribute of a study: what training them took, where it trained them itself
MAX_SKIPS = 50  # in a row: then one is measured, or a wrong model could rule out everything for good
SEED = "seed_index"  # attribute of a trial: what it draws from follows from this and the study's seed
PUBLISH_SHARE = 0.01  # of the time at most goes into plots of a search that is not over


class View(Protocol):
    """Hears of a search as it goes; see view.py."""

    def trial_started(self, number: int, architecture: Architecture) -> None: ...

    def phase(self, number: int, text: str, share: float | None = None) -> None: ...

    def trial_finished(self, trial: Finished, progress: SearchProgress) -> None: ...

    def trial_failed(self, number: int, reason: str) -> None: ...

    def trial_skipped(self, number: int, reason: str) -> None: ...


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands. model_error: median relative error of the block model's predictions, None before any."""

    num_finished: int
    num_wanted: int
    front_size: int
    hypervolume: float
    seconds_left: float
    num_skipped: int = 0
    model_error: float | None = None


@dataclass(eq=False)
class Underway:
    """A trial that is being judged. judgement: None while another trial of the same network is."""

    trial: Trial
    architecture: Architecture
    predictions: Mapping[str, Prediction]
    may_skip: bool
    judgement: Judgement | None = None
    step: Step | None = None
    job: Job | None = None

    @property
    def number(self) -> int:
        return self.trial.number


@dataclass
class Coordinator:
    """Asks for trials, has them judged and tells the study, until enough are finished.

    models: of each device, learn what blocks cost, and spare networks that surely break a budget. make_sampler: gives a
    sampler for a seed. It is called anew for each trial, with a seed that follows from this one and the number of trials so
    far (interrupted ones left out), so a resumed study goes on as an uninterrupted one would. cost: parameters and
    multiply-accumulates of an architecture. save_samples: keeps the raw samples of a trial's measurement. annotate: adds
    what people want to see of a finished trial, before it is told. publish: shows all finished trials elsewhere, such as on
    the dashboard, when the front has changed. reference_ms: latencies up to which the hypervolume counts. patiently: repeats
    what the study's database did not answer to. clock: in seconds.
    """

    study: optuna.Study
    space: Space
    engine: Engine
    objective: Objective
    models: Mapping[str, BlockModel]
    make_sampler: Callable[[int], BaseSampler]
    seed: int
    cost: Callable[[Architecture], tuple[int, int]]
    save_samples: Callable[[int, Outcome], None]
    annotate: Callable[[Trial, Finished], None]
    publish: Callable[[list[Finished]], None]
    view: View
    reference_ms: float | list[float]
    max_consecutive_failures: int
    patiently: Patience
    clock: Callable[[], float] = time.monotonic
    _finished: list[Finished] = field(default_factory=list)
    _known: dict[str, Outcome] = field(default_factory=dict)
    _members: list[Finished] = field(default_factory=list)
    _pending: dict[str, Parameters] = field(default_factory=dict)
    _underway: list[Underway] = field(default_factory=list)
    _seeds: set[int] = field(default_factory=set)  # of all trials that were not interrupted
    _first_unused: int = 0
    _may_wait: bool = False
    _num_skipped: int = 0
    _n_trials: int = 0
    _start: float = 0.0
    _done_before: int = 0
    _failures: int = 0  # in a row
    _skips: int = 0  # in a row
    _unpublished: bool = False
    _publish_at: float = 0.0

    def run(self, n_trials: int, timeout_minutes: float | None) -> bool:
        """Finish the study's first n_trials. Returns whether it got there before the time was up.

        Raises: SearchStopped after several failures in a row; KeyboardInterrupt if the user stops it.
        """
        self.patiently(self._recover)
        self._n_trials, self._start, self._done_before = n_trials, self.clock(), len(self._finished)
        try:
            while True:
                time_is_up = timeout_minutes is not None and self.clock() - self._start > 60 * timeout_minutes
                may_begin = not time_is_up and self._has_room()
                if may_begin:
                    self._begin()
                elif not self._underway:
                    break
                self._await(0.0 if may_begin else POLL_SECONDS)
            self.patiently(self._close_strays)
        except BaseException as stop:
            self._interrupt()
            if isinstance(stop, SystemExit):  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from stop
            raise
        return len(self._finished) >= n_trials

    def _has_room(self) -> bool:
        """Whether another trial is wanted, and the engine has a use for it. Never more are begun than may finish."""
        return len(self._underway) < min(self.engine.num_trials, self._n_trials - len(self._finished))

    def _begin(self) -> None:
        """Ask for a trial, and have its first step done unless the block model rules it out."""
        trial, architecture = self._ask()
        predictions = {
            name: said for name, model in self.models.items() if (said := model.predict(architecture)) is not None
        }
        may_skip = self._skips < MAX_SKIPS
        if may_skip and architecture.key not in self._known and (broken := self._breaks(predictions)) is not None:
            self._skip(trial, architecture, broken, predictions[broken])
            return
        if not may_skip:
            self._skips = 0  # this one is measured
        one = Underway(trial, architecture, predictions, may_skip)
        self.view.trial_started(one.number, architecture)
        is_alone = all(other.architecture.key != architecture.key for other in self._underway)
        self._underway.append(one)
        if is_alone:
            self._judge(one)

    def _judge(self, one: Underway) -> None:
        """Begin to judge a trial, now that no other one of this network is under way."""
        context = Context(
            self._known.get(one.architecture.key),
            one.predictions if one.may_skip else {},
            [member.outcome for member in self._members],
        )
        one.judgement = self.objective.judge(one.architecture, context)
        self._advance(one)

    def _await(self, seconds: float) -> None:
        """Take what the engine has done, after so long at most, and go on with the trials that it was for."""
        ended = self.engine.wait(seconds)
        for job in ended:
            self._advance(next(one for one in self._underway if one.job is job))
        if not ended:
            for one in self._underway:
                if one.step is not None and one.job is not None and one.job.share > 0:
                    self.view.phase(one.number, one.step.text, one.job.share)
        self._publish_when_due()

    def _advance(self, one: Underway) -> None:
        """Go on with a trial until its next step, or to its end."""
        assert one.judgement is not None
        try:
            found = proceed(one.judgement, None if one.job is None else one.job.result())
            costs = self.cost(one.architecture) if isinstance(found, Outcome) else (0, 0)
        except Exception as error:
            log.debug("trial %d failed", one.number, exc_info=True)
            self._give_up(one, one_line(error))
            return
        if isinstance(found, Outcome):
            self._finish(one, found, *costs)
            return
        one.step = found
        self.view.phase(one.number, one.step.text, 0.0)
        one.job = self.engine.submit(one.step.work)

    def _finish(self, one: Underway, outcome: Outcome, num_params: int, num_macs: int) -> None:
        self.view.phase(one.number, "writing")
        if outcome.latency.measured:
            self.save_samples(one.number, outcome)
            outcome = outcome.without_samples()
        said = {name: prediction.latency_ms for name, prediction in one.predictions.items()}
        predicted_ms = said.pop(self.objective.first, None)
        origin = one.trial.user_attrs.get("origin", SAMPLED)
        result = Finished(
            one.number, one.architecture, outcome, num_params, num_macs, origin, predicted_ms, one.trial.params, said
        )
        self.patiently(lambda: self._tell(one.trial, result))
        self._failures = 0
        self._skips = 0 if outcome.latency.measured else self._skips + 1
        self._learn(result)
        before = self._members
        self._finished.append(result)
        self._update_members(result)
        self._unpublished |= self._members != before
        self._underway.remove(one)
        self.view.trial_finished(result, self._progress())
        self._judge_next(one)

    def _give_up(self, one: Underway, reason: str) -> None:
        self.patiently(lambda: self._fail(one.trial._trial_id, one.number, reason))
        self._underway.remove(one)
        self._failures += 1
        self._skips = 0
        self.view.trial_failed(one.number, reason)
        if self._failures >= self.max_consecutive_failures:
            raise SearchStopped(f"stopped after {self._failures} failed trials in a row; the last one said: {reason}")
        self._judge_next(one)

    def _judge_next(self, ended: Underway) -> None:
        """Of the trials that wait for another one of the same network to end, the first."""
        waiting = (one for one in self._underway if one.judgement is None)
        same = next((one for one in waiting if one.architecture.key == ended.architecture.key), None)
        if same is not None:
            self._judge(same)

    def _learn(self, trial: Finished) -> None:
        self._known[trial.architecture.key] = trial.outcome
        first = self.objective.first
        said = {first: trial.predicted_ms, **trial.predicted}
        measured = {first: trial.outcome.latency, **trial.outcome.further}
        for name, latency in measured.items():
            if latency.measured:
                self.models[name].observe(trial.architecture, latency.latency_ms, said.get(name))

    def _update_members(self, result: Finished) -> None:
        """The front, now that there is one more trial."""
        is_repeat = any(one.architecture.key == result.architecture.key for one in self._members)
        if is_repeat:  # measured again, it may leave the front to what it dominated
            self._members = front(self._finished)
        else:
            self._members = front([*self._members, result])

    def _publish_when_due(self) -> None:
        """Show the front if it has changed, but not so often that it would take much of the time."""
        now = self.clock()
        if self._unpublished and now >= self._publish_at:
            self.patiently(lambda: self.publish(self._finished))
            self._unpublished = False
            self._publish_at = now + (self.clock() - now) / PUBLISH_SHARE

    def _progress(self) -> SearchProgress:
        seconds_each = (self.clock() - self._start) / (len(self._finished) - self._done_before)
        return SearchProgress(
            len(self._finished),
            self._n_trials,
            len(self._members),
            front_hypervolume(self._members, self.reference_ms),
            seconds_each * (self._n_trials - len(self._finished)),
            self._num_skipped,
            self.models[self.objective.first].median_error,
        )

    def _recover(self) -> None:
        """Close what a killed run left open, take up what is finished, and find the known networks not tried yet."""
        self._close_strays()
        trials = self.study.get_trials(deepcopy=False)
        kept = [trial for trial in trials if trial.user_attrs.get("status") != INTERRUPTED]
        begun = [trial for trial in kept if trial.state != TrialState.WAITING]
        self._seeds = {trial.user_attrs.get(SEED, rank) for rank, trial in enumerate(begun)}
        self._may_wait = len(begun) < len(kept)
        self._num_skipped = count_skipped(self.study)
        self._skips = 0
        for trial in reversed(kept):
            if SKIPPED not in trial.user_attrs and trial.user_attrs.get("latency", {}).get("repetitions") != 0:
                break
            self._skips += 1
        self._finished = finished_trials(self.study)
        for finished in self._finished:
            self._learn(finished)
        self._members = front(self._finished)
        taken = {trial.user_attrs.get("origin") for trial in kept}
        self._pending = {origin: parameters for origin, parameters in self.space.known().items() if origin not in taken}

    def _close_strays(self) -> None:
        """Trials that are open and not under way here: of a run that was killed, or begun when the database went away."""
        known = {one.number for one in self._underway}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self._fail(trial._trial_id, trial.number, INTERRUPTED)

    def _ask(self) -> tuple[Trial, Architecture]:
        """The next trial and its network. Those that an interrupted run did not come to have their turn again."""
        index = next(number for number in itertools.count(self._first_unused) if number not in self._seeds)
        self._first_unused = index
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        origin = next(iter(self._pending), None)
        is_retry = False

        def ask() -> tuple[Trial, Architecture]:
            nonlocal is_retry
            if is_retry:
                self._close_strays()
            is_enqueued = (is_retry or self._may_wait) and self._is_one_waiting()
            is_retry = True
            with quiet_experimental():
                self.study.sampler = self.make_sampler(seed)
            if origin is not None and not is_enqueued:
                self.study.enqueue_trial(dict(self._pending[origin]), user_attrs={"origin": origin})
            trial = self.study.ask()
            trial.set_user_attr(SEED, index)
            return trial, self.space.suggest(trial)

        trial, architecture = self.patiently(ask)
        self._may_wait = False
        self._seeds.add(index)
        self._pending.pop(trial.user_attrs.get("origin", ""), None)
        return trial, architecture

    def _is_one_waiting(self) -> bool:
        """Whether a known network is enqueued that no trial has taken up: a run ended just then."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _tell(self, trial: Trial, result: Finished) -> None:
        outcome, devices = result.outcome, self.objective.devices
        is_told = outcome.accuracy is not None and len(outcome.latencies_ms) == len(self.objective.objectives)
        with self._closing(trial, TrialState.COMPLETE if is_told else TrialState.PRUNED):
            for key, value in describe(result, devices).items():
                trial.set_user_attr(key, value)
            self.annotate(trial, result)
            if values := constraint_values(outcome, devices):
                set_constraints(self.study, trial._trial_id, values)
            if outcome.accuracy is not None and is_told:
                self.study.tell(trial, [outcome.accuracy.accuracy, *outcome.latencies_ms])
            else:
                self.study.tell(trial, state=TrialState.PRUNED)

    @contextmanager
    def _closing(self, trial: Trial, state: TrialState) -> Iterator[None]:
        """Tell a trial, which an earlier try may have done whose answer was lost.

        Raises: SearchStopped if somebody else has closed it.
        """
        try:
            yield
        except optuna.exceptions.UpdateFinishedTrialError as error:
            found = self.study._storage.get_trial(trial._trial_id).state
            if found != state:
                raise SearchStopped(
                    f"trial {trial.number} was closed as {found.name} by something else; let one search write the study"
                ) from error

    def _breaks(self, predictions: Mapping[str, Prediction]) -> str | None:
        """The first device whose budget a network surely breaks, for all that is known."""
        for name, device in self.objective.devices.items():
            said = predictions.get(name)
            if said is not None and device.budget_ms is not None and said.above(device.budget_ms, CONFIDENCE):
                return name
        return None

    def _skip(self, trial: Trial, architecture: Architecture, device: str, prediction: Prediction) -> None:
        budget = self.objective.devices[device].budget_ms
        assert budget is not None
        where = "" if device == self.objective.first else f" on {device}"
        reason = (
            f"skipped: the block model expects {prediction.latency_ms:.3g} ms{where} and is {CONFIDENCE:.0%} sure that "
            f"this is over the budget of {budget:g} ms; not measured"
        )
        over = [
            prediction.latency_ms - budget if name == device else 0.0
            for name, one in self.objective.devices.items()
            if one.budget_ms is not None
        ]

        def tell() -> None:
            with self._closing(trial, TrialState.PRUNED):
                described = {"status": reason, "architecture": architecture.to_dict(), SKIPPED: prediction.latency_ms}
                for key, value in described.items():
                    trial.set_user_attr(key, value)
                set_constraints(self.study, trial._trial_id, over)
                self.study.tell(trial, state=TrialState.PRUNED)

        self.patiently(tell)
        self._num_skipped += 1
        self._skips += 1
        self.view.trial_skipped(trial.number, reason)

    def _interrupt(self) -> None:
        """Close what is under way; what cannot be, as the database is gone, the next run closes."""
        for one in self._underway:
            try:
                self._fail(one.trial._trial_id, one.number, INTERRUPTED)
            except Exception as error:
                log.debug("trial %d stays open: %s", one.number, one_line(error))
                if is_away(error):
                    return

    def _fail(self, trial_id: int, number: int, reason: str) -> None:
        try:
            self.study._storage.set_trial_user_attr(trial_id, "status", reason)
            self.study.tell(number, state=TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            log.debug("trial %d was closed before", number)


def proceed(judgement: Judgement, result: Any) -> Step | Outcome:
    """The next step of a judgement, or what it comes to."""
    try:
        return judgement.send(result)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def set_constraints(study: optuna.Study, trial_id: int, values: list[float]) -> None:
    """Mark a trial as breaking (above 0) or keeping constraints, as samplers and the dashboard read them.

    The dashboard knows only this list, not the newer `Trial.set_constraint`; samplers know both. Call it once for a trial.
    """
    study._storage.set_trial_system_attr(trial_id, "constraints", values)
