"""What makes a model fast or portable: layers fused for inference, ONNX files, memory that is reused.

`prepare` returns a copy of a model for inference that computes the same with fewer and faster operations.
"""

from models.deploy.inference import prepare, prepare_in_place

__all__ = ["prepare", "prepare_in_place"]
