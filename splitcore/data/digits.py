"""`digits`: scikit-learn's handwritten digits, 1,797 images of 8x8 that come with the package.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part). The split is ours: 36 of
each class, drawn with a fixed seed, are the test split.
"""

from __future__ import annotations

import numpy as np

from splitcore.data.dataset import Dataset, Split
from splitcore.errors import DataError

CLASSES = tuple("0123456789")
TEST_PER_CLASS = 36
_SPLIT_SEED = 1998


def digits(split: Split) -> Dataset:
    """1,437 images to train with, or 360 to test with. Raises DataError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits  # imported here: a phone has no scikit-learn
    except ImportError as error:
        raise DataError(
            "digits: expected scikit-learn, which brings the images, it is not installed here: "
            "`pip install latentbed[train]`, or use the artefact's own samples"
        ) from error
    bunch = load_digits()
    # 0..16 is the published scale
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:TEST_PER_CLASS] for c in range(10)])
    # mixed, so that the first few samples are of every class
    rows = rng.permutation(test) if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(np.ascontiguousarray(images[rows]), labels[rows], CLASSES, "digits", split)
