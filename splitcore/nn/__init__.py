"""Torch begins here: split models, bottlenecks, training, export to ONNX and safetensors."""

from splitcore.nn.export import export
from splitcore.nn.recipe import Recipe, load_recipe
from splitcore.nn.split_model import SplitModel, calibrate
from splitcore.nn.tail import load_tail
from splitcore.nn.training import build, pick_device, train

__all__ = ["Recipe", "SplitModel", "build", "calibrate", "export", "load_recipe", "load_tail", "pick_device", "train"]
