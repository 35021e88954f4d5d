"""A network in ONNX Runtime: here, and on a device that has nothing else (runner.py)."""

from __future__ import annotations

from typing import Any


def open_session(content: bytes, num_threads: int) -> Any:
    """A model in ONNX Runtime, on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin into the anchor's turn
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
