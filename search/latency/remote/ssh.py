"""latency=ssh: ONNX Runtime on another device, such as a Raspberry Pi, that is reached over ssh.

The system's own ssh client connects, with keys and known host keys only. The device needs Python 3.9 with numpy and
onnxruntime; the code that times networks there is sent along (access.py) and nothing stays there. Its answers are checked as
data (answers.py). A dropped connection is made again (connection.py), and the measurement repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from search.latency.onnx_session import first_output, open_session
from search.latency.onnxruntime import file_of
from search.latency.remote.access import SshAccess
from search.latency.remote.host import OnnxNetwork, SshHost
from search.latency.runtime import PYTORCH, Runtime
from search.latency.target import PairedTarget, TargetSettings


def ssh_target(
    host: str,
    python: str = "python3",
    port: int | None = None,
    identity_file: str | None = None,
    known_hosts: str | None = None,
    connect_seconds: float = 10.0,
    reconnect_seconds: float = 300.0,
    **settings: Any,
) -> PairedTarget:
    """Build the target.

    Args:
        host: As in `SshAccess`, like the following arguments.
        settings: The fields of `TargetSettings`; cores are the device's.

    Raises:
        ValueError: If a setting is invalid.
    """
    access = SshAccess(host, python, port, identity_file, known_hosts, connect_seconds, reconnect_seconds)
    shared = TargetSettings(**settings)
    return PairedTarget(shared, RUNTIME, SshHost(access, shared.num_threads, shared.cores))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> OnnxNetwork:
    content, reference = file_of(model, x, dtype)
    return OnnxNetwork(content, x, reference, dtype)


def convert_file(content: bytes, x: Tensor, dtype: str) -> OnnxNetwork:
    """Send an ONNX file as it is; the device's outputs are compared with those of ONNX Runtime here."""
    return OnnxNetwork(content, x, FileRun(content), dtype)


class FileRun(nn.Module):
    """An ONNX file that runs here.

    Args:
        content: The file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.session = open_session(content, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(first_output(self.session, x.numpy()))


RUNTIME = Runtime(
    "ssh",
    backend="onnxruntime over ssh, CPUExecutionProvider",
    convert=convert,
    convert_file=convert_file,
    dtypes=("float32", "int8"),
    packages=(*PYTORCH, "onnx", "onnxscript"),
    runs_files=False,
)
