"""An exported student in int8: weights and activations quantized with ranges from clips of the training data."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from avdistill.inference.onnx_student import INPUT

# Windows at a time in calibration: their intermediate values are all held.
_BATCH = 4


def quantize(model: Path, parameters: set[str], windows: Tensor) -> None:
    """Make a model int8 in place: static quantization by onnxruntime, weights with a scale per channel.

    Activations are uint8 in the range between the smallest and the largest value of the calibration windows. Weights
    have 7 bits: with 8, processors without VNNI clip sums of two products, which costs accuracy there. Normalization
    and spectrogram, which come before the first layer with weights, stay in float32.

    Args:
        model: an ONNX file with float32 weights.
        parameters: names of the trained weights in it.
        windows: (N, ...) inputs of the model from the training data.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Windows(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(windows.split(_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    float_model = onnx.shape_inference.infer_shapes(onnx.load(model))
    with _quiet():
        quantize_static(
            float_model,
            model,
            Windows(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=before_weights(float_model.graph, parameters),
        )


def before_weights(graph: Any, parameters: set[str]) -> list[str]:
    """Names of the nodes of an ONNX graph that neither use trained weights nor come after a node that does."""
    trained, before = set(parameters), []
    for node in graph.node:  # in the order of computation
        if trained.isdisjoint(node.input):
            before.append(node.name)
        else:
            trained.update(node.output)
    return before


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime recommends on the root logger what the exporter has done already."""
    logger, level = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
