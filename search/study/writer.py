"""The only writer of a study: asks Optuna for trials and stores their results.

Everything that it does may be retried: an answer of the database that was lost may have been a success.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from models.architecture import Architecture
from search import SearchStopped, one_line
from search.latency.base import Latency
from search.latency.block_model import CONFIDENCE
from search.space.space import Parameters, Space
from search.study.known import OverLimits, RuledOut
from search.study.limits import Limits, Values, excesses
from search.study.locks import RetryPolicy
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import is_away, quiet_experimental
from search.study.targets import Target, objectives
from search.study.trial import (
    EXPECTED_GAIN,
    INTERRUPTED,
    ORIGIN,
    OVER_LIMITS,
    SKIPPED,
    STATUS,
    TrialRecord,
    attributes,
    constraint_values,
    ended_with_failure,
    evaluated_trials,
    finished_by_time,
    hidden_attributes,
    is_finished,
    is_skipped,
    is_unmeasured,
    network_of,
    on,
)

log = logging.getLogger(__name__)
SEED = "seed_index"  # attribute of a trial: what it draws from follows from this and the study's seed


@dataclass(frozen=True)
class Recovered:
    """Where a search stopped.

    Attributes:
        tried: keys of the networks that trials have finished, skipped or failed.
        num_skipped: trials that the block models or limits ended before anything was measured.
        num_unmeasured: the last trials in a row that were not measured.
    """

    finished: list[TrialRecord]
    tried: set[str]
    num_skipped: int
    num_unmeasured: int


@dataclass
class StudyWriter:
    """Writes a study.

    Attributes:
        targets: latency targets by name.
        make_sampler: gives a sampler for a seed. It is called for each trial, with a seed that follows from the study's and
            from the number of trials so far (interrupted ones left out), so a resumed study continues as an uninterrupted
            one would.
        seed: of the study.
        annotate: adds what people want to see of a finished trial, before it is told and so closed.
        retry: retries what the database did not answer to.
        limits: those of parameters and multiply-accumulates.
    """

    study: optuna.Study
    space: Space
    targets: Mapping[str, Target]
    make_sampler: Callable[[int], BaseSampler]
    seed: int
    annotate: Callable[[Trial, TrialRecord], None]
    retry: RetryPolicy
    limits: Limits = field(default_factory=dict)
    _running: dict[int, Trial] = field(default_factory=dict)  # by number
    _baselines: dict[str, Parameters] = field(default_factory=dict)  # that no trial has evaluated yet
    _used_seeds: set[int] = field(default_factory=set)  # of all trials that were not interrupted
    _first_unused: int = 0

    def recover(self) -> Recovered:
        """Close what a killed search left open, and find out where it stopped."""
        return self.retry(self._recover)

    def ask(self) -> tuple[Trial, Architecture]:
        """Begin the next trial. Those that an interrupted search did not come to have their turn again.

        An enqueued trial whose parameters the space does not have fails, and the next one is asked for. That is a mistake of
        whoever enqueued it: it is neither a finished trial nor one of the failures in a row that stop a search.
        """
        index = next(number for number in itertools.count(self._first_unused) if number not in self._used_seeds)
        self._first_unused = index
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        is_retry = False

        def ask() -> tuple[Trial, Architecture | str]:
            nonlocal is_retry
            if is_retry:
                self._close_strays()
            is_retry = True
            with quiet_experimental():
                self.study.sampler = self.make_sampler(seed)
            if (origin := self._next_baseline()) is not None:
                self.study.enqueue_trial(dict(self._baselines[origin]), user_attrs={ORIGIN: origin})
            trial = self.study.ask()
            if mistake := self._mistake_in(trial):
                return trial, mistake
            trial.set_user_attr(SEED, index)
            architecture = self.space.suggest(trial)
            sampler = self.study.sampler
            if isinstance(sampler, SurrogateSampler) and sampler.expected_gain is not None:
                trial.set_user_attr(EXPECTED_GAIN, sampler.expected_gain)
            return trial, architecture

        trial, architecture = self.retry(ask)
        while isinstance(architecture, str):
            self._reject(trial, architecture)
            trial, architecture = self.retry(ask)
        self._used_seeds.add(index)
        self._baselines.pop(trial.user_attrs.get(ORIGIN, ""), None)
        self._running[trial.number] = trial
        return trial, architecture

    def _next_baseline(self) -> str | None:
        """The baseline to enqueue, if it is the turn of one, and not of a trial that waits already.

        Right after a failure it is the sampler's turn, once there is something that worked: if a baseline fails, others,
        which are like it, probably do so too, and a few failures in a row end the search.
        """
        if not self._baselines:
            return None
        trials = self.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return None
        if ended_with_failure(trials) and any(map(is_finished, trials)):
            return None
        return next(iter(self._baselines))

    def _mistake_in(self, trial: Trial) -> str:
        """What is wrong with the parameters that a trial was enqueued with; empty if nothing is."""
        enqueued = self.study._storage.get_trial(trial._trial_id).system_attrs.get("fixed_params")
        if enqueued is None:
            return ""
        try:
            self.space.check(enqueued)
        except ValueError as error:
            return str(error)
        return ""

    def _reject(self, trial: Trial, mistake: str) -> None:
        """Fail a trial that was enqueued with parameters that the space does not have."""
        reason = f"enqueued with parameters that cannot be evaluated: {mistake}"
        log.warning("trial %d failed: %s", trial.number, reason)
        self.retry(lambda: self._fail(trial._trial_id, trial.number, {STATUS: reason}))

    def finish(self, record: TrialRecord) -> None:
        """Write a finished trial."""
        trial, result = self._running[record.number], record.result
        is_complete = result.accuracy is not None and len(result.objectives) == len(objectives(self.targets))
        compared_ms = {name: self.targets[name].budget_on.ms(latency) for name, latency in result.latencies.items()}
        values = self._constraints(compared_ms, record.costs, result.latencies)

        def tell() -> None:
            with self._closing(trial, TrialState.COMPLETE if is_complete else TrialState.PRUNED):
                for key, value in attributes(record, self.targets).items():
                    trial.set_user_attr(key, value)
                for key, value in hidden_attributes(record).items():
                    self.study._storage.set_trial_system_attr(trial._trial_id, key, value)
                self.annotate(trial, record)
                if values:
                    set_constraints(self.study, trial._trial_id, values)
                if is_complete:
                    self.study.tell(trial, [record.accuracy, *result.latencies_ms])
                else:
                    self.study.tell(trial, state=TrialState.PRUNED)

        self.retry(tell)
        del self._running[record.number]

    def skip(self, number: int, architecture: Architecture, ruled_out: RuledOut | OverLimits, costs: Values) -> str:
        """Write a trial whose network is neither measured nor trained. Returns the reason, in words."""
        trial, expected_ms = self._running[number], dict[str, float]()
        if isinstance(ruled_out, OverLimits):
            reason = f"skipped: {ruled_out.describe(self.limits)}; neither measured nor trained"
            attribute: dict[str, Any] = {OVER_LIMITS: {name: costs[name] for name in ruled_out.names}}
        else:
            name, prediction = ruled_out.target, ruled_out.prediction
            limit = self.targets[name].limit_ms
            assert limit is not None
            reason = (
                f"skipped: the block model expects {prediction.latency_ms:.3g} ms{on(name, self.targets)} and is "
                f"{CONFIDENCE:.0%} sure that this is over the budget of {limit:g} ms; not measured"
            )
            attribute = {SKIPPED: prediction.latency_ms}
            expected_ms[name] = prediction.latency_ms
        described = {STATUS: reason, "architecture": architecture.to_dict(), **attribute}

        def tell() -> None:
            with self._closing(trial, TrialState.PRUNED):
                for key, value in described.items():
                    trial.set_user_attr(key, value)
                set_constraints(self.study, trial._trial_id, self._constraints(expected_ms, costs, {}))
                self.study.tell(trial, state=TrialState.PRUNED)

        self.retry(tell)
        del self._running[number]
        return reason

    def _constraints(self, compared_ms: Mapping[str, float], costs: Values, latencies: Mapping[str, Latency]) -> list[float]:
        """Excess over each budget, then over each limit of file and memory by target, and over those of the costs."""
        of_targets = [
            excess for name, target in self.targets.items() for excess in target.resource_excesses(latencies.get(name))
        ]
        return [*constraint_values(compared_ms, self.targets), *of_targets, *excesses(costs, self.limits)]

    def fail(self, number: int, architecture: Architecture, reason: str) -> None:
        """Write a failed trial with its reason."""
        trial = self._running[number]
        described = {STATUS: reason, "architecture": architecture.to_dict()}
        self.retry(lambda: self._fail(trial._trial_id, number, described))
        del self._running[number]

    def close_strays(self) -> None:
        """Close open trials that do not run here: of a search that was killed, or begun when the database went away."""
        self.retry(self._close_strays)

    def interrupt(self) -> None:
        """Close what runs here; what cannot be closed, because the database is away, the next search closes."""
        for number, trial in self._running.items():
            try:
                self._fail(trial._trial_id, number, {STATUS: INTERRUPTED})
            except Exception as error:
                log.debug("trial %d stays open: %s", number, one_line(error))
                if is_away(error):
                    return

    def _recover(self) -> Recovered:
        self._close_strays()
        closed = evaluated_trials(self.study)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        self._used_seeds = {trial.user_attrs[SEED] for trial in closed if SEED in trial.user_attrs}
        origins = {trial.user_attrs.get(ORIGIN) for trial in [*closed, *waiting]}
        self._baselines = {name: values for name, values in self.space.baselines().items() if name not in origins}
        return Recovered(
            finished=finished_by_time(self.study),
            tried={network_of(trial).key for trial in closed},
            num_skipped=sum(map(is_skipped, closed)),
            num_unmeasured=sum(
                1
                for _ in itertools.takewhile(
                    is_unmeasured, (trial for trial in reversed(closed) if OVER_LIMITS not in trial.user_attrs)
                )
            ),
        )

    def _close_strays(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._running:
                self._fail(trial._trial_id, trial.number, {STATUS: INTERRUPTED})

    @contextmanager
    def _closing(self, trial: Trial, state: TrialState) -> Iterator[None]:
        """Accept that an earlier try has closed the trial. Raises: SearchStopped if something else has."""
        try:
            yield
        except optuna.exceptions.UpdateFinishedTrialError as error:
            stored = self.study._storage.get_trial(trial._trial_id).state
            if stored != state:
                raise SearchStopped(
                    f"trial {trial.number} was closed as {stored.name} by another process; let one search use the study"
                ) from error

    def _fail(self, trial_id: int, number: int, described: Mapping[str, Any]) -> None:
        try:
            for key, value in described.items():
                self.study._storage.set_trial_user_attr(trial_id, key, value)
            self.study.tell(number, state=TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            log.debug("trial %d was closed before", number)


def set_constraints(study: optuna.Study, trial_id: int, values: list[float]) -> None:
    """Mark a trial as violating (above 0) or keeping constraints, as samplers and the dashboard read them.

    The dashboard knows only this list, not the newer `Trial.set_constraint`; samplers know both. Call it once per trial.
    """
    study._storage.set_trial_system_attr(trial_id, "constraints", values)
