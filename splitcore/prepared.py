"""What was prepared for `latentbed plan`: artefacts of one network at several cuts, and one of all of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

PREPARED = "prepared.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Made(_Strict):
    """One cut's artefact."""

    name: str
    """by which it is told from the others"""
    cut: str
    folder: str


class Prepared(_Strict):
    """What `python -m splitcore.nn.split.prepare` leaves."""

    network: str
    cuts: tuple[Made, ...]
    whole: str
    """folder of the artefact whose head is the identity"""
    notes: tuple[str, ...] = ()
    """which cuts were taken, and which not"""
