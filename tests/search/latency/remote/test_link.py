"""A connection whose other end answers something else than the runner would."""

from __future__ import annotations

import sys

import pytest

from search.latency.remote.answers import DeviceError
from search.latency.remote.link import Link, LinkLost
from search.latency.remote.runner import MARK


def link_that_prints(*lines: str) -> Link:
    """Connect to a device that prints these lines, whatever it is asked."""
    script = "import sys, time\n" + "".join(f"print({line!r}, flush=True)\n" for line in lines) + "time.sleep(20)\n"
    return Link([sys.executable, "-c", script], b"")


@pytest.mark.parametrize(
    "answer",
    [
        "not json",
        "[1, 2]",
        '{"id": 7, "result": {}}',
        '{"id": 0, "result": [1]}',
        '{"id": 0, "error": "' + "x" * 5000 + '"}',
    ],
)
def test_answers_are_checked(answer: str) -> None:
    link = link_that_prints("Welcome to the device", MARK + answer)
    try:
        with pytest.raises(DeviceError) as caught:
            link.ask("hello", {})
        assert len(str(caught.value)) < 300
    finally:
        link.close()


def test_other_lines_are_skipped() -> None:
    link = link_that_prints("Welcome to the device", "", MARK + '{"id": 0, "result": {"a": 1}}')
    try:
        assert link.ask("hello", {}) == {"a": 1}
    finally:
        link.close()


def test_answer_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.latency.remote.link.ANSWER_BYTES", 10_000)
    link = Link([sys.executable, "-c", "print('x' * 100_000)"], b"")
    try:
        with pytest.raises(DeviceError, match="longer than 10000 bytes"):
            link.ask("hello", {})
    finally:
        link.close()


def test_silent_device_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.latency.remote.link.SILENCE_SECONDS", 0.5)
    link = link_that_prints()
    try:
        with pytest.raises(LinkLost, match="does not answer"):
            link.ask("hello", {})
    finally:
        link.close()


def test_missing_ssh_client_is_named() -> None:
    with pytest.raises(LinkLost, match="no ssh client"):
        Link(["no-such-command"], b"")
