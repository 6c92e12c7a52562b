"""A study: one table of attacks by points of attack by budgets, as data. YAML checked by pydantic; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from adversary.attacks import ATTACKS, Attack, AttackConfig, OwnAttack
from splitcore import document
from splitcore.codec import CodecConfig
from splitcore.codec.identity import Identity
from splitcore.threat import Norm, Point

NAME = Field(pattern=r"^[A-Za-z0-9_.+-]{1,48}$")
TITLE = Field(pattern=r"^[A-Za-z0-9_.+ -]{1,48}$")
NORMS: tuple[Norm, ...] = get_args(Norm)
Eps: TypeAlias = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Several: TypeAlias = Annotated[tuple[Eps, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Subject(_Strict):
    """A split model under study."""

    recipe: Path | None = None
    """relative to the study's file; its artefact is made when it is missing"""
    artefact: Path | None = None
    """an artefact's folder, relative to the study's file"""
    title: str = ""
    """in the tables; empty: its name"""

    @model_validator(mode="after")
    def _is_one(self) -> Subject:
        if (self.recipe is None) == (self.artefact is None):
            raise ValueError("expected a `recipe` or an `artefact`, one of the two")
        return self

    @property
    def name(self) -> str:
        return self.recipe.stem if self.recipe is not None else (self.artefact or Path()).name


class Place(_Strict):
    """A point of attack and the codec behind it."""

    name: Annotated[str, TITLE]
    """the column's head"""
    point: Point
    codec: CodecConfig = Field(default_factory=Identity)


class Entry(_Strict):
    """One attack with its settings."""

    name: Annotated[str, NAME] | None = None
    """None: the attack's kind"""
    attack: AttackConfig
    norms: tuple[Norm, ...] | None = None
    """None: all that it has"""

    @property
    def label(self) -> str:
        return self.name or self.attack.kind


def _by_kind(value: Any) -> Any:
    """`square` stands for {attack: {kind: square}}."""
    return {"attack": {"kind": value}} if isinstance(value, str) else value


class Grid(_Strict):
    """Every combination of what it lists; a cell that two grids share is measured once."""

    title: str
    subjects: tuple[str, ...] | None = None
    """by name; None: all of the study"""
    attacks: Literal["all"] | tuple[Annotated[Entry, BeforeValidator(_by_kind)], ...] = "all"
    """`all`: every one there is, with its own settings, in every norm that it has"""
    places: tuple[str, ...] | None = None
    """by name; None: all of the study"""
    eps: Several | Annotated[dict[Norm, Several], Field(min_length=1)]
    """in standard deviations of what is attacked (see `Study`); for all norms, or by norm, and then of these norms alone"""
    samples: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """None: the study's"""
    budget: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """None: the study's"""

    def eps_of(self, norm: Norm) -> tuple[float, ...]:
        return self.eps.get(norm, ()) if isinstance(self.eps, dict) else self.eps

    @property
    def is_sweep(self) -> bool:
        """Several eps for a norm: the tables have a column for each."""
        return any(len(self.eps_of(norm)) > 1 for norm in NORMS)


class Study(_Strict):
    """What `latentbed study` measures, one cell after the other, against a live edge server for each artefact.

    eps is in standard deviations at every point: of the pixels of the artefact's samples at `input`, of the calibrated latent
    at `latent` and `wire`. It bounds each coordinate for linf, and the root mean square over coordinates for l2, so that its
    square is the papers' mean squared error in units of the variance. Equal eps is then an equal ratio of signal to noise,
    -20 log10(eps) dB, at all points, for all networks and cuts; an absolute number would be worth more where values are small.
    """

    name: Annotated[str, NAME]
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)]
    places: Annotated[tuple[Place, ...], Field(min_length=1)]
    grids: Annotated[tuple[Grid, ...], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1, le=10_000)] = 64
    """of each cell: the first that are classified as their label says, through the cell's codec"""
    budget: Annotated[int, Field(ge=2, le=1_000_000)] = 500
    """queries for one sample"""
    pool: Annotated[int, Field(ge=0, le=8192)] = 128
    """other samples that the adversary recorded, with the server's answers: start points, and what learners learn from"""
    box: Literal["codec", "calibrated"] = "codec"
    """what values may be sent: all that the codec carries, or only those of the calibrated ranges; pixels stay in [0, 1]"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    max_rows: Annotated[int, Field(ge=1, le=4096)] = 256
    """of one request, and of one batch on the edge"""
    in_flight: Annotated[int, Field(ge=1, le=64)] = 8
    limit_s: Annotated[float, Field(gt=0)] = 900.0
    """for one cell: sessions that still run then end without success, and the table says so"""
    trust: tuple[str, ...] = ()
    """whose code may attack as `module:Class`: modules, or files `x.py` relative to the study's file"""

    @model_validator(mode="after")
    def _fits(self) -> Study:
        _distinct("subjects", [subject.name for subject in self.subjects])
        _distinct("places", [place.name for place in self.places])
        for grid in self.grids:
            _known("subjects", grid.subjects, [subject.name for subject in self.subjects])
            _known("places", grid.places, [place.name for place in self.places])
            for entry in () if grid.attacks == "all" else grid.attacks:
                norms = () if isinstance(entry.attack, OwnAttack) else entry.attack.norms
                if norms and not set(entry.norms or norms) <= set(norms):
                    raise ValueError(f"attack {entry.label} has norms {', '.join(norms)}, got {', '.join(entry.norms or ())}")
        return self

    def subject(self, name: str) -> Subject:
        return next(subject for subject in self.subjects if subject.name == name)

    def place(self, name: str) -> Place:
        return next(place for place in self.places if place.name == name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack, in one norm, at one point of one artefact, with one eps."""

    subject: str
    place: Place
    label: str
    attack: Attack
    norm: Norm
    eps: float
    samples: int
    budget: int

    @property
    def title(self) -> str:
        return f"{self.subject} {self.place.name} {self.label} {self.norm} {self.eps:g}"


def cells(study: Study, grid: Grid) -> Iterator[Cell]:
    """In the order of the tables."""
    for subject in grid.subjects or [subject.name for subject in study.subjects]:
        for label, attack, norms in entries(study, grid):
            for norm in norms:
                for place in grid.places or [place.name for place in study.places]:
                    for eps in grid.eps_of(norm):
                        yield Cell(
                            subject=subject, place=study.place(place), label=label, attack=attack, norm=norm, eps=eps,
                            samples=grid.samples or study.samples, budget=grid.budget or study.budget,
                        )  # fmt: skip


def entries(study: Study, grid: Grid) -> Iterator[tuple[str, Attack, tuple[Norm, ...]]]:
    """(label, attack, norms) of a grid; somebody's own attack is built here, its code run."""
    if grid.attacks == "all":
        yield from ((attack.kind, attack, attack.norms) for attack in (kind() for kind in ATTACKS))
        return
    for entry in grid.attacks:
        attack = entry.attack.build(study.trust) if isinstance(entry.attack, OwnAttack) else entry.attack
        yield entry.label, attack, entry.norms or attack.norms


def _distinct(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"expected {what} with names that differ, got {', '.join(names)}")


def _known(what: str, wanted: tuple[str, ...] | None, names: list[str]) -> None:
    strange = sorted(set(wanted or ()) - set(names))
    if strange:
        raise ValueError(f"expected {what} of {', '.join(names)}, got {', '.join(strange)}")


STUDY: TypeAdapter[Study] = TypeAdapter(Study)


def load_study(path: Path) -> Study:
    """The study in a YAML file. Raises ScenarioError."""
    study = document.load(STUDY, path, "study")
    base = path.resolve().parent
    trust = tuple(str(base / entry) if entry.endswith(".py") else entry for entry in study.trust)
    return study.model_copy(update={"trust": trust})
