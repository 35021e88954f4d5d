"""Optuna's storage for the one process that writes a study: what it wrote is not read again and again.

Optuna's own cache trusts only trials that are finished. Each time anything asks for all trials it reads all that are open,
for another process might have changed them: with 128 of them 80 ms, twice for every trial. A study here has one writer, so
that a trial is read anew only if this process has written it since. Trials that something else adds are found when the next
one is created.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState


class SoleWriter(_CachedStorage):
    """For one study. A write marks its trial first: one that failed, or whose answer was lost, is read anew like others.

    Optuna's `Trial` keeps what it is given here and changes it as it writes, which such marks precede.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._known: dict[int, FrozenTrial] | None = None  # by id, rising; None to read all anew
        self._study_id: int | None = None  # of those
        self._written: set[int] = set()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        known, self._known = self._known, None
        trial_id = super().create_new_trial(study_id, template_trial)
        trial = self._backend.get_trial(trial_id)
        # Optuna tries again by itself if an answer is lost, and then may have made two.
        if known is not None and trial.number == len(known):
            known[trial_id] = trial
            self._known = known
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._written.add(trial_id)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._written.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._written.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._written.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._written.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if self._known is None or trial_id not in self._known:
            return super().get_trial(trial_id)
        if trial_id in self._written:
            self._known[trial_id] = self._backend.get_trial(trial_id)
            self._written.remove(trial_id)
        return self._known[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """By number."""
        if self._known is None:
            self._known = {trial._trial_id: trial for trial in super().get_all_trials(study_id, deepcopy=False)}
            self._study_id = study_id
            self._written.clear()
        assert study_id == self._study_id
        for trial_id in list(self._written):
            self.get_trial(trial_id)
        trials = [trial for trial in self._known.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
