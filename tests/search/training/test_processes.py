"""Processes that train together: their gradients, their errors, and their end."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from search import SearchStopped, UserError
from search.training.processes import average_gradients, train_together, world_size_and_rank
from search.training.progress import Progress


def average(progress: Progress) -> None:
    rank = world_size_and_rank()[1]
    parameters = [torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True), torch.ones(1, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.full((2, 3), float(rank)), torch.full((4,), 10.0 * rank)
    average_gradients(parameters)
    assert parameters[0].grad.tolist() == [[0.5] * 3] * 2
    assert parameters[1].grad.tolist() == [5.0] * 4
    assert parameters[2].grad is None
    progress(0.5)


def fail(progress: Progress, is_mistake: bool) -> None:
    if world_size_and_rank()[1] == 1:
        if is_mistake:
            raise UserError("lower train.lr")
        os._exit(3)
    average(progress)  # waits for the other one


def test_gradients_are_averaged() -> None:
    shares: list[float] = []
    train_together(average, 2, "gloo", shares.append)
    assert shares == [0.5]


@pytest.mark.parametrize(
    ("is_mistake", "error", "message"), [(True, UserError, "^lower train.lr$"), (False, SearchStopped, "died")]
)
def test_error_of_a_process_ends_all(is_mistake: bool, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_together(partial(fail, is_mistake=is_mistake), 2, "gloo", lambda share: None)


def test_one_process_has_nothing_to_average() -> None:
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.ones(2)
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 1.0]
