"""A lasting connection, to a runner that starts on this machine without ssh."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from search import UserError
from search.latency.remote.access import BOOT, SshAccess, bundle
from search.latency.remote.answers import DeviceError, ProtocolError
from search.latency.remote.connection import FACTS, Connection
from search.latency.remote.link import Link


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    command = [sys.executable, "-c", BOOT.format(size=len(bundle()))]
    monkeypatch.setattr(SshAccess, "command", lambda self: command)
    connection = Connection(SshAccess("device", reconnect_seconds=0.0), 1, None)
    yield connection
    connection.close()


def test_facts_describe_the_device(connection: Connection) -> None:
    facts = connection.facts()
    assert set(facts) == {*FACTS, "cores"}
    assert connection.num_cores == facts["cores"] == len(os.sched_getaffinity(0))
    assert connection.facts() == facts


def test_one_link_serves_until_it_drops(connection: Connection) -> None:
    links = [connection.run(lambda link: link) for _ in range(2)]
    assert links[0] is links[1]
    connection.close()
    assert connection.run(lambda link: link) is not links[0]


def test_another_device_is_refused(connection: Connection) -> None:
    connection.facts()
    assert connection._facts is not None
    connection._facts["node"] = "another"
    connection.close()
    with pytest.raises(DeviceError, match=r"another device than before \(node differ"):
        connection.facts()


def test_error_on_the_device_leaves_the_link(connection: Connection) -> None:
    link = connection.run(lambda link: link)
    with pytest.raises(DeviceError, match="KeyError"):
        connection.run(lambda link: link.ask("alone", {"name": "missing", "seconds": 0.1}))
    assert connection.run(lambda link: link) is link


def test_answer_against_the_protocol_closes_the_link(connection: Connection) -> None:
    link = connection.run(lambda link: link)

    def fail(link: Link) -> None:
        raise ProtocolError("not an answer")

    with pytest.raises(ProtocolError):
        connection.run(fail)
    assert connection.run(lambda link: link) is not link


def test_device_that_was_never_reached_is_a_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshAccess, "command", lambda self: [sys.executable, "-c", "raise SystemExit('no route')"])
    with pytest.raises(UserError, match="latency.host=device cannot be reached: no route; check that"):
        Connection(SshAccess("device"), 1, None).facts()
