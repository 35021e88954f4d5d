"""A study: created or resumed, checked against what is asked for, and filled by one coordinator until it is complete.

The coordinator is the only writer. A finished trial is one that is complete or that the latency budget ruled out; a trial
that was interrupted or failed does not count. Killed at any moment, a study loses at most the trial in flight.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.errors import SearchStopped, UserError, one_line
from search.latency.base import Latency
from search.latency.block_model import CONFIDENCE, BlockModel, Prediction
from search.objective import Context, Objective, Outcome, Reporter, constraint_value
from search.pareto import front_indices, front_probabilities, hypervolume
from search.space import Parameters, Space

log = logging.getLogger(__name__)

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
METRICS = ["accuracy", "latency_ms"]
INTERRUPTED = "interrupted"
SUPERNET = "supernet"  # attribute of a study: the file of the weights that its networks are scored with
SHARED_SECONDS = "shared_weights_seconds"  # attribute of a study: what training them took, where it trained them itself
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
SKIPPED = "skipped_at_ms"  # attribute of a skipped trial: the prediction that ruled it out
MAX_SKIPS = 50  # in a row: then one is measured, or a wrong model could rule out everything for good


@dataclass(frozen=True)
class Finished:
    """A finished trial and what it found.

    predicted_ms: what the block model said before it was measured. parameters: what the trial was asked.
    """

    number: int
    architecture: Architecture
    outcome: Outcome
    num_params: int
    num_macs: int
    origin: str
    predicted_ms: float | None = None
    parameters: Parameters = field(default_factory=dict)


class Skipped:
    """A trial that ended unmeasured: the block model was sure that the network breaks the budget."""


class View(Reporter, Protocol):
    """Hears of a search as it goes; see view.py."""

    def trial_started(self, number: int, architecture: Architecture) -> None: ...

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


@contextmanager
def quiet_experimental() -> Iterator[None]:
    """Optuna calls multivariate TPE and metric names experimental; they have been stable for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for one coordinator; freed by the system even if the process is killed.

    Raises: UserError if another process holds it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another search; wait for it or choose another study.name") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room or change study.name") from error
    try:
        yield
    finally:
        lock.release()


def study_folder(name: object) -> Path:
    """Of a study of this machine. Raises: UserError if its name cannot be a folder's."""
    if name is None or not re.fullmatch(r"[\w-][\w.-]*", str(name)):
        raise UserError(f"study.name={name} may hold letters, digits, '_', '.' and '-' alone, and not start with '.'")
    return Path("outputs") / str(name)


def existing_folder(name: object) -> Path:
    """The folder of a study of this machine. Raises: UserError if there is none."""
    folder = study_folder(name)
    if not folder.is_dir():
        raise UserError(f"there is no {folder} here; run a search with study.name={name} first, or change folder")
    return folder


def open_study(name: str, storage: str, create: bool) -> optuna.Study:
    """Open a study by its Optuna name and storage URL, or create it.

    Raises: UserError if the storage cannot be read, the study is missing, or its objectives are not ours.
    """
    try:
        backend = optuna.storages.get_storage(storage)
        if create:
            study = optuna.create_study(study_name=name, storage=backend, directions=DIRECTIONS, load_if_exists=True)
        else:
            study = optuna.load_study(study_name=name, storage=backend)
    except KeyError as error:
        raise UserError(
            f"there is no study {name} in {public_url(storage)}; run a search with study.name={name} first"
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError) as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise UserError(
            f"the study storage {public_url(storage)} cannot be used ({reason}); put back a copy, move it away to "
            "start anew, or change storage.url"
        ) from error
    if study.directions != DIRECTIONS:
        found = ", ".join(d.name.lower() for d in study.directions)
        raise UserError(f"study {name} optimises {found}; this search needs maximize, minimize; use another study.name")
    return study


def public_url(url: str) -> str:
    """A storage URL without its password."""
    head, separator, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://***@{tail}" if separator else url


def has_trials(study: optuna.Study) -> bool:
    """Whether a study has begun; until then nothing that is kept with it binds."""
    return bool(study.get_trials(deepcopy=False))


def remember(study: optuna.Study, key: str, value: Any, remedy: str) -> None:
    """Keep a study's setting until it has trials; from then on refuse another one.

    Raises: UserError naming the first values that differ and the remedy.
    """
    if not has_trials(study):
        study.set_user_attr(key, value)
        return
    saved = study.user_attrs[key]
    before, now = _flatten(saved), _flatten(value)
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if changed:
        shown = "; ".join(f"{path} was {before.get(path)!r} and is now {now.get(path)!r}" for path in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"study {study.study_name} was made otherwise: {shown}{more}; {remedy}")


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


def finished_trials(study: optuna.Study) -> list[Finished]:
    """All finished trials of a study, by number."""
    return [_read(trial) for trial in study.get_trials(deepcopy=False, states=FINISHED) if "latency" in trial.user_attrs]


def count_skipped(study: optuna.Study) -> int:
    """Trials that the block model ended before they were measured."""
    return sum(SKIPPED in trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))


def latest_of_each(trials: list[Finished]) -> list[Finished]:
    """One trial for each network: the latest, whose latency all its measurements have gone into."""
    return list({trial.architecture.key: trial for trial in trials}.values())


def judged(trials: list[Finished]) -> list[Finished]:
    """Different networks that have an accuracy and keep the budget, measured or predicted."""
    return [t for t in latest_of_each(trials) if t.outcome.feasible and t.outcome.accuracy is not None]


def candidates(trials: list[Finished]) -> list[Finished]:
    """What a front is made of: feasible networks, measured and with an accuracy."""
    return [t for t in judged(trials) if t.outcome.latency.measured]


def front(trials: list[Finished]) -> list[Finished]:
    """Candidates that no other one dominates, by rising latency."""
    return not_dominated(candidates(trials))


def not_dominated(trials: Sequence[Finished]) -> list[Finished]:
    """Those of given trials, all with an accuracy, that no other of them dominates, by rising latency."""
    indices = front_indices([accuracy_of(t) for t in trials], [t.outcome.latency.latency_ms for t in trials])
    return [trials[i] for i in indices]


def front_probability(trials: list[Finished]) -> dict[str, float]:
    """Of each candidate, by its key: how probable it is that no other one dominates it, given the errors of both values."""
    compared = candidates(trials)
    latencies = [t.outcome.latency for t in compared]
    shares = front_probabilities(
        [accuracy_of(t) for t in compared],
        [t.outcome.accuracy.standard_error for t in compared if t.outcome.accuracy is not None],
        [latency.latency_ms for latency in latencies],
        [latency.standard_error for latency in latencies],
    )
    return {trial.architecture.key: share for trial, share in zip(compared, shares, strict=True)}


def accuracy_of(trial: Finished) -> float:
    assert trial.outcome.accuracy is not None
    return trial.outcome.accuracy.accuracy


def front_hypervolume(members: list[Finished], reference_ms: float) -> float:
    """Share of the rectangle up to the reference latency that a front dominates."""
    return hypervolume([accuracy_of(t) for t in members], [t.outcome.latency.latency_ms for t in members], reference_ms)


@dataclass
class Coordinator:
    """Asks for trials, has them judged and tells the study, until enough are finished.

    make_sampler: gives a sampler for a seed. It is called anew for each trial, with a seed that follows from this one
    and the number of trials so far (interrupted ones left out), so a resumed study goes on as an uninterrupted one
    would. model: learns what blocks cost, and spares networks that surely break the budget. cost: parameters and
    multiply-accumulates of an architecture. save_samples: keeps the raw samples of a trial's measurement. annotate: adds
    what people want to see of a finished trial, before it is told. publish: shows all finished trials elsewhere, such as on
    the dashboard, whenever the front changes.
    """

    study: optuna.Study
    space: Space
    objective: Objective
    model: BlockModel
    make_sampler: Callable[[int], BaseSampler]
    seed: int
    cost: Callable[[Architecture], tuple[int, int]]
    save_samples: Callable[[int, Latency], None]
    annotate: Callable[[Trial, Finished], None]
    publish: Callable[[list[Finished]], None]
    view: View
    reference_ms: float
    max_consecutive_failures: int
    _known: dict[str, Outcome] = field(default_factory=dict)
    _pending: dict[str, Parameters] = field(default_factory=dict)

    def run(self, n_trials: int, timeout_minutes: float | None) -> bool:
        """Finish the study's first n_trials. Returns whether it got there before the time was up.

        Raises: SearchStopped after several failures in a row; KeyboardInterrupt if the user stops it.
        """
        start = time.monotonic()
        self._recover()
        finished = finished_trials(self.study)
        self._known = {trial.architecture.key: trial.outcome for trial in finished}
        for trial in finished:
            self._learn(trial)
        failures, num_failed, done_before = 0, self._count_failed(), len(finished)
        num_skipped, skips = count_skipped(self.study), self._count_last_skips()
        members = front(finished)
        while len(finished) < n_trials:
            elapsed = time.monotonic() - start
            if timeout_minutes is not None and elapsed > 60 * timeout_minutes:
                return False
            result = self._one_trial(len(finished) + num_failed + num_skipped, members, may_skip=skips < MAX_SKIPS)
            if isinstance(result, Skipped):
                num_skipped, skips = num_skipped + 1, skips + 1
                continue
            measured = isinstance(result, str) or result.outcome.latency.measured
            skips = 0 if measured else skips + 1
            if isinstance(result, str):
                failures += 1
                num_failed += 1
                if failures >= self.max_consecutive_failures:
                    raise SearchStopped(f"stopped after {failures} failed trials in a row; the last one said: {result}")
                continue
            failures = 0
            finished.append(result)
            done_now = len(finished) - done_before
            left = (time.monotonic() - start) / done_now * (n_trials - len(finished))
            before, members = members, front(finished)
            volume = front_hypervolume(members, self.reference_ms)
            if members != before:
                self.publish(finished)
            progress = SearchProgress(
                len(finished), n_trials, len(members), volume, left, num_skipped, self.model.median_error
            )
            self.view.trial_finished(result, progress)
        return True

    def _count_failed(self) -> int:
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return sum(trial.user_attrs.get("status") != INTERRUPTED for trial in failed)

    def _count_last_skips(self) -> int:
        """Trials that were not measured since the last that was, interrupted ones left out."""
        skips = 0
        for trial in reversed(self.study.get_trials(deepcopy=False)):
            if SKIPPED in trial.user_attrs or trial.user_attrs.get("latency", {}).get("repetitions") == 0:
                skips += 1
            elif trial.user_attrs.get("status") != INTERRUPTED:
                break
        return skips

    def _recover(self) -> None:
        """Close what a killed run left open, and find the known networks that no trial has taken yet."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._fail(trial._trial_id, trial.number, INTERRUPTED)
        taken = {
            trial.user_attrs.get("origin")
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get("status") != INTERRUPTED
        }
        self._pending = {origin: parameters for origin, parameters in self.space.known().items() if origin not in taken}

    def _one_trial(self, num_tried: int, members: list[Finished], may_skip: bool) -> Finished | Skipped | str:
        """Returns the finished trial, that it was skipped, or why it failed."""
        trial = self._ask(num_tried)
        architecture = self.space.suggest(trial)
        prediction = self.model.predict(architecture)
        if may_skip and architecture.key not in self._known and self._rules_out(prediction):
            return self._skip(trial, architecture, prediction)
        try:
            self.view.trial_started(trial.number, architecture)
            num_params, num_macs = self.cost(architecture)
            known = self._known.get(architecture.key)
            context = Context(known, prediction if may_skip else None, [member.outcome for member in members])
            outcome = self.objective.evaluate(architecture, context, self.view)
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into SystemExit
            self._fail(trial._trial_id, trial.number, INTERRUPTED)
            raise KeyboardInterrupt from stop
        except Exception as error:
            log.debug("trial %d failed", trial.number, exc_info=True)
            reason = one_line(error)
            self._fail(trial._trial_id, trial.number, reason)
            self.view.trial_failed(trial.number, reason)
            return reason
        self.view.phase("writing")
        if outcome.latency.measured:
            self.save_samples(trial.number, outcome.latency)
        origin = trial.user_attrs.get("origin", "sampled")
        predicted_ms = prediction.latency_ms if prediction else None
        result = Finished(trial.number, architecture, outcome, num_params, num_macs, origin, predicted_ms, trial.params)
        self._tell(trial, result)
        self._learn(result)
        self._known[architecture.key] = outcome
        return result

    def _learn(self, trial: Finished) -> None:
        if trial.outcome.latency.measured:
            self.model.observe(trial.architecture, trial.outcome.latency.latency_ms)

    def _ask(self, num_tried: int) -> Trial:
        if self._pending:
            origin = next(iter(self._pending))
            self.study.enqueue_trial(dict(self._pending.pop(origin)), user_attrs={"origin": origin})
        seed = int(np.random.SeedSequence([self.seed, num_tried]).generate_state(1)[0])
        with quiet_experimental():
            self.study.sampler = self.make_sampler(seed)
        return self.study.ask()

    def _tell(self, trial: Trial, result: Finished) -> None:
        outcome, budget = result.outcome, self.objective.budget_ms
        for key, value in _describe(result, budget).items():
            trial.set_user_attr(key, value)
        self.annotate(trial, result)
        if budget is not None:
            set_constraint(self.study, trial._trial_id, constraint_value(outcome, budget))
        if outcome.accuracy is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [outcome.accuracy.accuracy, outcome.latency.latency_ms])

    def _rules_out(self, prediction: Prediction | None) -> TypeGuard[Prediction]:
        budget = self.objective.budget_ms
        return prediction is not None and budget is not None and prediction.above(budget, CONFIDENCE)

    def _skip(self, trial: Trial, architecture: Architecture, prediction: Prediction) -> Skipped:
        budget = self.objective.budget_ms
        assert budget is not None
        reason = (
            f"skipped: the block model expects {prediction.latency_ms:.3g} ms and is {CONFIDENCE:.0%} sure that this is "
            f"over the budget of {budget:g} ms; not measured"
        )
        for key, value in {"status": reason, "architecture": architecture.to_dict(), SKIPPED: prediction.latency_ms}.items():
            trial.set_user_attr(key, value)
        set_constraint(self.study, trial._trial_id, prediction.latency_ms - budget)
        self.study.tell(trial, state=TrialState.PRUNED)
        self.view.trial_skipped(trial.number, reason)
        return Skipped()

    def _fail(self, trial_id: int, number: int, reason: str) -> None:
        self.study._storage.set_trial_user_attr(trial_id, "status", reason)
        self.study.tell(number, state=TrialState.FAIL)


def set_constraint(study: optuna.Study, trial_id: int, value: float) -> None:
    """Mark a trial as breaking (above 0) or keeping a constraint, as samplers and the dashboard read it.

    The dashboard knows only this list, not the newer `Trial.set_constraint`; samplers know both. Call it once for a trial.
    """
    study._storage.set_trial_system_attr(trial_id, "constraints", [value])


def _describe(result: Finished, budget_ms: float | None) -> dict[str, Any]:
    """A trial's attributes: what the dashboard shows and `_read` reads."""
    outcome = result.outcome
    if outcome.accuracy is None or not outcome.feasible:
        status = f"infeasible: latency {outcome.latency.latency_ms:.3g} ms is over the budget of {budget_ms:g} ms"
    else:
        status = "same network as an earlier trial: its accuracy, latency refined" if outcome.reused_accuracy else "judged"
        if not outcome.latency.measured:
            status = "dominated: not measured, its latency is the block model's prediction"
    described = {
        "status": status,
        "architecture": result.architecture.to_dict(),
        "parameters": result.num_params,
        "multiply_accumulates": result.num_macs,
        "latency": outcome.latency.summary(),
        "predicted_latency_ms": result.predicted_ms,
    }
    if outcome.accuracy is not None:
        described["accuracy"] = outcome.accuracy.to_dict()
        described["accuracy_standard_error"] = outcome.accuracy.standard_error
        described["reused_accuracy"] = outcome.reused_accuracy
    return described


def _read(trial: FrozenTrial) -> Finished:
    attrs = trial.user_attrs
    constraints = trial.system_attrs.get("constraints", [0.0])
    outcome = Outcome(
        latency=Latency(**attrs["latency"]),
        accuracy=Accuracy(**attrs["accuracy"]) if "accuracy" in attrs else None,
        feasible=all(value <= 0 for value in constraints),
        reused_accuracy=bool(attrs.get("reused_accuracy", False)),
    )
    architecture = Architecture.from_dict(attrs["architecture"])
    return Finished(
        number=trial.number,
        architecture=architecture,
        outcome=outcome,
        num_params=attrs["parameters"],
        num_macs=attrs["multiply_accumulates"],
        origin=attrs.get("origin", "sampled"),
        predicted_ms=attrs.get("predicted_latency_ms"),
        parameters=trial.params,
    )
