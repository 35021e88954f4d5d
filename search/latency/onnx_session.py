"""ONNX Runtime sessions: on this machine, and on devices over ssh, which have no PyTorch (remote/runner.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def overflows_int8(cpuinfo: Path) -> bool:
    """Whether products of unsigned and signed 8-bit numbers may overflow: on x86 without instructions for them (VNNI).

    ONNX Runtime has an exact way, which also slows processors with VNNI down: LITv2-S took 66 instead of 46 ms.

    Args:
        cpuinfo: The system's description of its processors; where there is none, nothing is known to overflow.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx2" in text and "vnni" not in text


def open_session(content: bytes, num_threads: int) -> Any:
    """Open an ONNX file in ONNX Runtime's CPU provider.

    Args:
        content: The file.
        num_threads: Threads of the session.

    Returns:
        An `onnxruntime.InferenceSession`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if overflows_int8(CPUINFO):
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads spin during the anchor's turn
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def first_output(session: Any, x: Any) -> Any:
    """Run a network of one input, a NumPy array, in a session. Returns its first output, a NumPy array."""
    return session.run(None, {session.get_inputs()[0].name: x})[0]
