"""Checks of what a device answers: data from elsewhere, never run or unpickled, and never trusted to have the right form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.latency.protocol import Series
from search.latency.repeatability import Repeatability
from search.latency.rounds import Round

TEXT_LENGTH = 200
MAX_NUMBERS = 10**6
MAX_SECONDS = 1e6
LONGEST_MS = 1e7  # of one run
LARGEST_OUTPUT = 1e30


class DeviceError(RuntimeError):
    """Something went wrong on the device."""


class ProtocolError(DeviceError):
    """The device's answer does not follow the protocol."""


def check_mapping(value: object) -> dict[str, Any]:
    """Raises: ProtocolError if this is not an object."""
    if not isinstance(value, dict):
        raise ProtocolError("the device's answer is not an object")
    return value


def list_in(answer: Mapping[str, Any], key: str) -> list[Any]:
    """Raises: ProtocolError if an answer has no list of this name, or one that is empty or too long."""
    value = answer.get(key)
    if not isinstance(value, list) or not value or len(value) > MAX_NUMBERS:
        raise ProtocolError(f"the device's answer has no list of {key}")
    return value


def check_number(value: object, lowest: float, highest: float) -> float:
    """Raises: ProtocolError if this is not a number in the range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise ProtocolError(f"the device's answer has {printable(repr(value))} instead of a number")
    return float(value)


def check_numbers(value: object, highest: float, lowest: float = 1e-9) -> list[float]:
    """Raises: ProtocolError if this is not a list of numbers in the range, or it is empty or too long."""
    if not isinstance(value, list) or not value or len(value) > MAX_NUMBERS:
        raise ProtocolError("the device's answer has no numbers where the protocol asks for some")
    return [check_number(item, lowest, highest) for item in value]


def printable(value: object) -> str:
    """Return a value as one short line of printable characters."""
    return "".join(character for character in str(value) if character.isprintable())[:TEXT_LENGTH]


def times_alone(answer: Mapping[str, Any]) -> list[list[float]]:
    """Read the times of a network by itself, in seconds, by round. Raises: ProtocolError if the answer has another form."""
    return [check_numbers(times, LONGEST_MS / 1e3) for times in list_in(answer, "rounds")]


def series_in(answer: Mapping[str, Any], num_networks: int, tolerance: float, repeatability: Repeatability) -> list[Series]:
    """Read the times of networks beside the anchor; their estimates are computed here.

    Raises: ProtocolError if the answer has another form or is about another number of networks.
    """
    all_series = [read_series(check_mapping(item), tolerance, repeatability) for item in list_in(answer, "series")]
    if len(all_series) != num_networks:
        raise ProtocolError(f"the device timed {len(all_series)} networks instead of {num_networks}")
    return all_series


def read_series(item: Mapping[str, Any], tolerance: float, repeatability: Repeatability) -> Series:
    """Read the times of one network beside the anchor. Raises: ProtocolError if they have another form."""
    rounds = [read_round(check_mapping(round_)) for round_ in list_in(item, "rounds")]
    if len(rounds) < 2 or any(len(round_.anchor_ms) != len(round_.candidate_ms) + 1 for round_ in rounds):
        raise ProtocolError("the device's times are not those of a measurement")
    series = Series(rounds, int(check_number(item.get("warmup_runs"), 0, MAX_NUMBERS)), repeatability=repeatability)
    series.seconds = check_number(item.get("seconds"), 0, MAX_SECONDS)
    series.converged = series.estimate.half_width <= tolerance
    return series


def read_round(item: Mapping[str, Any]) -> Round:
    candidate_ms, anchor_ms = (tuple(check_numbers(item.get(key), LONGEST_MS)) for key in ("candidate_ms", "anchor_ms"))
    return Round(candidate_ms, anchor_ms)
