"""What a Ray cluster must offer is checked before anything waits for it. Ray itself is not needed."""

from __future__ import annotations

import pytest

from search.engine.ray import check_resources, cpus_of_a_training, trainings_at_a_time


@pytest.mark.parametrize(
    ("nodes", "num_gpus", "message"),
    [
        ([{"CPU": 4.0}], 0.0, "no node of the Ray cluster offers latency_first"),
        ([{"CPU": 1.0, "latency_first": 1.0}, {"CPU": 1.0}], 0.0, "engine.num_cpus=2 is more than the 1 CPUs of any node"),
        ([{"CPU": 4.0, "latency_first": 1.0}], 1.0, "engine.num_gpus=1 is more than the 0 GPUs of any node"),
        ([{"CPU": 4.0, "latency_first": 1.0}, {"CPU": 1.0, "GPU": 1.0}], 1.0, "no node of the Ray cluster has both"),
    ],
)
def test_what_no_node_offers_is_named(nodes: list[dict[str, float]], num_gpus: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_resources(nodes, ["first"], 2.0, num_gpus)


def test_as_many_trainings_as_nodes_have_room_for() -> None:
    nodes = [{"CPU": 7.0, "GPU": 2.0}, {"CPU": 3.0}, {"latency_first": 1.0}]
    assert trainings_at_a_time(nodes, 2.0, 0.0) == 4
    assert trainings_at_a_time(nodes, 2.0, 1.0) == 2


def test_training_takes_a_cpu_for_each_thread_unless_told_otherwise() -> None:
    assert cpus_of_a_training(2, None) == 2
    assert cpus_of_a_training(2, 3.5) == 3.5
    with pytest.raises(ValueError, match=r"accuracy.num_threads=2 is more than engine.num_cpus=1; raise the latter"):
        cpus_of_a_training(2, 1.0)
    with pytest.raises(ValueError, match="engine=ray needs accuracy.num_threads"):
        cpus_of_a_training(None, 2.0)
