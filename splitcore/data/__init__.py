"""Data sets as uint8 arrays. No pickle, no torch."""

from splitcore.data.dataset import Dataset, Split
from splitcore.data.images import ImageFolder, folder
from splitcore.data.named import DATASETS, DatasetName, data_folder, load

__all__ = ["DATASETS", "Dataset", "DatasetName", "ImageFolder", "Split", "data_folder", "folder", "load"]
