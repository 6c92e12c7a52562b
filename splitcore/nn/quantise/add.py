"""Heads in int8 into an artefact that is there: files first, then the manifest that names them.

The manifest's digest is what the nodes compare, so an artefact with more heads is another artefact to them: whoever runs on
the old one refuses the new one in words. That is meant: which head in int8 is the right one is part of what they agree on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from splitcore import artefact as artefacts
from splitcore.artefact import FLOAT32, HEAD, HEADS, Artefact
from splitcore.codec import fit
from splitcore.data import DATASETS, load
from splitcore.data.images import folder as image_folder
from splitcore.errors import ArtefactError, DataError
from splitcore.head import as_unit
from splitcore.latent import F32
from splitcore.nn.quantise.graph import write_int8
from splitcore.nn.quantise.worth import Compute, tail_of, worth
from splitcore.onnx_session import open_session


def calibration_images(
    artefact: Artefact, path: Path | None, count: int, data_dir: Path | None
) -> tuple[NDArray[np.uint8], str]:
    """At most `count` images uint8 [n, C, H, W], spread over what there is, and what they are. Never the held-out samples.

    Those in the folder `path`, else of the data set's training split. Raises DataError.
    """
    manifest = artefact.manifest
    if path is not None:
        found, what = image_folder(path, manifest.input_shape, manifest.classes).images, f"images of {path.name}"
    else:
        known = [name for name in DATASETS if name == manifest.dataset]
        if not known:
            raise DataError(
                f"artefact {manifest.name}: expected a data set of {', '.join(DATASETS)} to take training images from, got "
                f"{manifest.dataset!r}: give --images FOLDER"
            )
        found, what = load(known[0], "train", data_dir).images, f"training images of {manifest.dataset}"
    if found.shape[1:] != manifest.input_shape:
        raise DataError(
            f"artefact {manifest.name}: expected images [n, {', '.join(map(str, manifest.input_shape))}] to calibrate with, "
            f"got {list(found.shape)}: give --images FOLDER"
        )
    chosen = found[np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]
    return chosen, f"{len(chosen)} {what}"


def add_int8(
    artefact: Artefact, images: NDArray[np.uint8], calibrated_on: str, folder: Path, *, trusted: Collection[str] = ()
) -> Artefact:
    """The artefact with heads in int8, in `folder`, which may be its own; calibrated with `images` uint8 [n, C, H, W]."""
    manifest, tail, codec = artefact.manifest, tail_of(artefact, trusted), fit(artefact.manifest.codec, artefact.latent)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = write_int8(artefact.path(HEAD), images, Path(scratch))
        heads = {name: opened(path) for name, path in {FLOAT32: artefact.path(HEAD), **made}.items()}
        measured = worth(heads, *artefact.samples, codec, tail, calibrated_on)
        # from here on `folder` is a whole artefact at every moment: first one without heads in int8
        others = {name: sha for name, sha in manifest.files.items() if name not in HEADS.values() or name == HEAD}
        if folder.resolve() != artefact.folder.resolve():
            (folder / artefacts.MANIFEST).unlink(missing_ok=True)
            for name in others:
                shutil.copy(artefact.path(name), folder / name)
        plain = manifest.model_copy(update={"files": others, "heads": {}})
        artefacts.write(folder, plain)
        for path in made.values():
            path.chmod(0o644)
            path.replace(folder / path.name)
    files = {**others, **{path.name: artefacts.sha256(folder / path.name) for path in made.values()}}
    made_with = {**plain.made_with, "quantised_by": f"onnxruntime {onnxruntime.__version__}"}
    return artefacts.write(folder, plain.model_copy(update={"files": files, "heads": measured, "made_with": made_with}))


def opened(head: Path) -> Compute:
    session = open_session(head, head, ArtefactError)
    return lambda images: cast(F32, session.run(["latent"], {"image": as_unit(images)})[0])
