"""The storage of a search: what it says of a study is what another process reads of it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search.study.storage import SoleWriter


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url: str) -> optuna.Study:
    return opened(url)


def opened(url: str) -> optuna.Study:
    return optuna.create_study(study_name="test", storage=SoleWriter(RDBStorage(url)), load_if_exists=True)


def stored(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="test", storage=url).get_trials()


def fill(study: optuna.Study) -> list[optuna.trial.Trial]:
    """Trials in every state, asked, written and told in turns; gives those that are open."""
    study.enqueue_trial({"x": 3}, user_attrs={"origin": "known"})
    trials = []
    for number in range(8):
        trial = study.ask()
        trial.suggest_int("x", 0, 9)
        study.get_trials(deepcopy=False)
        trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("number", number)
        trials.append(trial)
    study.tell(trials[0], 1.0)
    study.tell(trials[5].number, state=TrialState.PRUNED)
    study.get_trials(deepcopy=False)
    trials[3].set_user_attr("note", "written after it was read")
    study._storage.set_trial_system_attr(trials[4]._trial_id, "constraints", [1.0])
    study.tell(trials[4], 2.0)
    study.tell(trials[6], state=TrialState.FAIL)
    study.enqueue_trial({"x": 4})
    return [trials[number] for number in (1, 2, 3, 7)]


def test_trials_are_what_another_process_reads(study: optuna.Study, url: str) -> None:
    fill(study)
    assert study.get_trials() == stored(url)
    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    assert [trial.number for trial in study.get_trials(deepcopy=False, states=finished)] == [0, 4, 5]
    assert [study._storage.get_trial(trial._trial_id) for trial in stored(url)] == stored(url)


def test_study_is_taken_up_as_it_was_left(study: optuna.Study, url: str) -> None:
    fill(study)
    again = opened(url)
    assert again.get_trials() == stored(url)
    fill(again)
    assert again.get_trials() == stored(url)


def test_what_was_read_is_not_read_again(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = fill(study)
    study.get_trials(deepcopy=False)
    reads: list[int] = []
    read = RDBStorage.get_trial
    monkeypatch.setattr(RDBStorage, "get_trial", lambda self, trial_id: reads.append(trial_id) or read(self, trial_id))
    monkeypatch.setattr(RDBStorage, "_get_trials", lambda *args, **kwargs: pytest.fail("all trials are read again"))
    for _ in range(3):
        study.get_trials(deepcopy=False)
    assert not reads
    trials[1].set_user_attr("note", "one is written")
    study.get_trials(deepcopy=False)
    assert reads == [trials[1]._trial_id]


def test_write_whose_answer_was_lost_is_read(study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = fill(study)
    study.get_trials(deepcopy=False)
    lost = ConnectionError("the answer is lost")

    def unanswered(name: str) -> None:
        act = getattr(RDBStorage, name)

        def act_in_vain(*args: object, **kwargs: object) -> None:
            act(*args, **kwargs)
            raise lost

        monkeypatch.setattr(RDBStorage, name, act_in_vain)

    for name in ("_create_new_trial", "set_trial_state_values", "set_trial_user_attr"):
        unanswered(name)
    with pytest.raises(ConnectionError):
        study.ask()
    with pytest.raises(ConnectionError):
        study.tell(trials[0], 1.0)
    with pytest.raises(ConnectionError):
        trials[1].set_user_attr("note", "lost")
    monkeypatch.undo()
    assert study.get_trials() == stored(url)


def test_trial_that_something_else_adds_is_found_with_the_next(study: optuna.Study, url: str) -> None:
    """As when Optuna creates one again since the answer was lost that there is one already."""
    fill(study)
    study.get_trials(deepcopy=False)
    optuna.load_study(study_name="test", storage=url).ask()
    study.ask()
    assert study.get_trials() == stored(url)
