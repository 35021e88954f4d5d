"""ONNX Runtime sessions: on this machine, and on devices over ssh, which have no PyTorch (remote/runner.py)."""

from __future__ import annotations

from typing import Any


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
    # Without VNNI, products of unsigned and signed 8-bit numbers overflow unless this is set; it does nothing elsewhere.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads spin during the anchor's turn
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
