"""Two networks that are not this project's, for CIFAR-10's images: `python examples/plan/networks.py FOLDER` writes them.

mobile.onnx   MobileNetV2 (Sandler et al., CVPR 2018, table 2) in ONNX nodes, its first strides 1 as is usual for 32 x 32
encoder.pt2   a vision transformer (Dosovitskiy et al., ICLR 2021), patches of 8 x 8, 6 layers, 128 wide, by torch.export

Neither has learned anything: where to cut does not depend on what the weights are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""expansion, channels, repetitions, stride of the first"""


class MobileNet:
    """The graph, as it grows."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes = []
        self.weights = [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]
        x, channels = self.conv("images", 3, 32, 3, name="stem"), 32
        number = 0
        for expansion, width, repetitions, stride in BLOCKS:
            for repetition in range(repetitions):
                first = stride if repetition == 0 else 1
                x = self.block(x, channels, width, expansion, first, name=f"block{number}")
                channels, number = width, number + 1
        x = self.conv(x, channels, 1280, 1, name="last")
        x = self.add("GlobalAveragePool", [x], "pooled")
        x = self.add("Flatten", [x], "flat")
        self.weight("classes", (1280, 10), 1280)
        self.add("MatMul", [x, "classes"], "logits")

    def add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int) -> None:
        values = self.rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))

    def conv(
        self, x: str, c_in: int, c_out: int, k: int, *, name: str, stride: int = 1, group: int = 1, bound: bool = True
    ) -> str:
        self.weight(f"{name}_w", (c_out, c_in // group, k, k), c_in // group * k * k)
        y = self.add("Conv", [x, f"{name}_w"], f"{name}_conv", strides=[stride] * 2, pads=[k // 2] * 4, group=group)
        return self.add("Clip", [y, "zero", "six"], f"{name}_relu6") if bound else y

    def block(self, x: str, c_in: int, c_out: int, expansion: int, stride: int, *, name: str) -> str:
        wide = c_in * expansion
        y = x if expansion == 1 else self.conv(x, c_in, wide, 1, name=f"{name}_expand")
        y = self.conv(y, wide, wide, 3, name=f"{name}_depthwise", stride=stride, group=wide)
        y = self.conv(y, wide, c_out, 1, name=f"{name}_project", bound=False)
        return self.add("Add", [x, y], f"{name}_sum") if c_in == c_out and stride == 1 else y

    def model(self) -> ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(self.nodes, "mobilenetv2", [images], [logits], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Encoder(nn.Module):
    """Patches as tokens, each with its place; six layers; the mean token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 128, 8, 8)
        self.places = nn.Parameter(torch.randn(16, 128) / 10)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.classify = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.classify(self.layers(tokens).mean(1))
        return logits


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(MobileNet().model(), folder / "mobile.onnx")
    example = (torch.zeros(2, 3, 32, 32),)
    program = torch.export.export(Encoder().eval(), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "encoder.pt2")
    print(f"{folder}/mobile.onnx {folder}/encoder.pt2")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/networks"))
