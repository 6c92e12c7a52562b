"""Code of somebody's own, named as `module:factory`: run only where the process's operator named that module or its file."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from splitcore.errors import LatentbedError

FACTORY = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<factory>[A-Za-z_]\w*)", re.ASCII)


def own_code(name: str, trusted: Collection[str], *, noun: str, node: str, wrong: type[LatentbedError]) -> Callable[..., Any]:
    """The class or function `module:factory` of a module in `trusted`: names of modules, or files `path/module.py`.

    Raises `wrong`, with `noun` and `node` in its words: what is wanted, and whose option allows it.
    """
    match = FACTORY.fullmatch(name)
    if match is None:
        raise wrong(f"expected a {noun} `module:factory`, got {name[:120]!r}")
    found: Any = getattr(_module(match["module"], trusted, noun, node, wrong), match["factory"], None)
    # what the module merely imports was not written to be called with these arguments: `os.system` may be among it
    if not callable(found) or getattr(found, "__module__", None) not in (match["module"], _name_of(match["module"])):
        raise wrong(f"expected a class or function {match['factory']} defined in module {match['module']}, found none")
    made: Callable[..., Any] = found
    return made


def _module(name: str, trusted: Collection[str], noun: str, node: str, wrong: type[LatentbedError]) -> ModuleType:
    files = [Path(entry) for entry in trusted if entry.endswith(".py") and Path(entry).stem == name]
    if not files and name not in trusted:
        raise wrong(
            f"expected a trusted module for the {noun}, got {name!r}, trusted are {sorted(trusted) or 'none'}: its code would "
            f"run here. Read it, then say --trust path/to/{name.rpartition('.')[2]}.py or --trust {name} to the {node}, "
            f"`{node.partition(' ')[0]}: {{trust: [...]}}` in a scenario"
        )
    try:
        return _run_file(_name_of(name), files[0]) if files else importlib.import_module(name)
    except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
        where = str(files[0]) if files else f"module {name}"
        raise wrong(
            f"expected code for the {noun} in {where}, importing it gave {type(error).__name__}: {error}: "
            "install what it needs, name the file itself, or set PYTHONPATH"
        ) from error


def _name_of(name: str) -> str:
    """A file's module goes by a name of its own, so that `json.py` replaces nobody's `json`."""
    return f"latentbed_trusted_{name}"


def _run_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the module of a class
    spec.loader.exec_module(module)
    return module
