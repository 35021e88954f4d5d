"""One connection to a device: a process of ssh, with the runner (runner.py) at its other end.

A request is a line of JSON, followed by as many bytes as it announces; an answer is a line of JSON behind a mark. All other
lines are what a login prints, or empty signs of life.
"""

from __future__ import annotations

import itertools
import json
import logging
import selectors
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from search.latency.remote.answers import DeviceError, ProtocolError, check_mapping, printable
from search.latency.remote.runner import MARK

log = logging.getLogger(__name__)

ANSWER_BYTES = 2**26  # limit for one answer
SILENCE_SECONDS = 300.0  # limit without a sign of life; ssh itself notices a broken connection within seconds
END_SECONDS = 5.0  # for ssh to end after its streams have closed


class LinkLost(ConnectionError):
    """The connection to the device broke, or the device does not answer."""


class Link:
    """A connection to a device.

    Args:
        command: Command that connects; the runner reads its standard input.
        code: Bytes to send first.

    Raises:
        LinkLost: If the command does not start, or ends at once.
    """

    def __init__(self, command: Sequence[str], code: bytes) -> None:
        self.is_broken = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
            )
        except FileNotFoundError as error:
            self._errors.close()
            raise LinkLost("there is no ssh client on this machine") from error
        self._ids = itertools.count()
        self._unread = bytearray()
        try:
            self._send(code)
        except LinkLost:
            self.close()
            raise

    def ask(self, action: str, arguments: Mapping[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            action: What to do: a method of the runner.
            arguments: Its arguments, as plain data.
            content: Bytes to send along.

        Raises:
            LinkLost: If the connection ends, or there is no sign of life for SILENCE_SECONDS.
            DeviceError: If the action fails on the device.
            ProtocolError: If the answer is not one to this request.
        """
        self.is_broken = True  # until it is answered
        request_id = next(self._ids)
        request = {"id": request_id, "do": action, "arguments": arguments, "bytes": len(content)}
        self._send(json.dumps(request).encode() + b"\n" + content)
        while not (line := self._read_line()).startswith(MARK):
            pass  # what a login prints, and signs of life
        try:
            answer = check_mapping(json.loads(line.removeprefix(MARK)))
        except ValueError as error:
            raise ProtocolError("the device's answer is not JSON") from error
        if answer.get("id") != request_id:
            raise ProtocolError("the device answered another request than the last one")
        self.is_broken = False
        if "error" in answer:
            raise DeviceError(f"on the device: {printable(answer['error'])}")
        return check_mapping(answer.get("result"))

    def close(self) -> None:
        """End the process of ssh, and with it the runner."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    log.debug("the connection was closed before everything was sent")
        self._errors.close()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except OSError as error:
            raise LinkLost(self._reason()) from error

    def _read_line(self) -> str:
        """Raises: LinkLost if the connection ends or is silent for too long, ProtocolError if a line does not end."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (end := self._unread.find(b"\n")) < 0:
                if not selector.select(SILENCE_SECONDS):
                    raise LinkLost("it does not answer")
                part = self._process.stdout.read1()  # type: ignore[attr-defined]
                if not part:
                    raise LinkLost(self._reason())
                self._unread += part
                if len(self._unread) > ANSWER_BYTES:
                    raise ProtocolError(f"the device's answer is longer than {ANSWER_BYTES} bytes")
        line = bytes(self._unread[:end]).decode(errors="replace")
        del self._unread[: end + 1]
        return line

    def _reason(self) -> str:
        """Return the last line that ssh, or Python on the device, wrote to standard error."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.debug("ssh closed its streams and still runs")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return printable(lines[-1]) if lines else "the connection was closed"
