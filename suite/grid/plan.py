"""From cells to stages: which stages a cell needs, with which specs, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from suite.errors import UserError
from suite.grid.expand import MAX_CELLS, Cell, Matcher, Selection, check_count, expand, select
from suite.grid.names import check_names
from suite.grid.overrides import engine_values, method_values, parse_rules
from suite.grid.places import Places
from suite.grid.schema import load_grid
from suite.grid.stage_maker import StageMaker
from suite.grid.student import Row, StudentPlanner
from suite.grid.yaml_strict import Document
from suite.methods import Method, get
from suite.spec.archs import TORCHVISION_GMACS
from suite.spec.datasets import REGISTRY, Dataset, dataset
from suite.spec.heap import many_objects
from suite.spec.recipes import TeacherRecipe, teacher_recipe
from suite.spec.stages import (
    KINDS,
    EvaluationSpec,
    PrepareSpec,
    RelabelSpec,
    Stage,
    StatisticsSpec,
    SynthesisSpec,
    TeacherSpec,
    Weights,
)


@dataclass
class Plan:
    """The deduplicated graph of stages that a grid needs.

    Attributes:
        name: Of the grid, and of its variant after a dot.
        stages: Each stage once: by kind in the order of `KINDS`, then by first use. Inputs come before their users.
        cells: Cells in file order, without the excluded ones.
        cell_keys: Key of each cell's evaluation.
        excluded: Cells that the grid excludes, and why.
    """

    name: str
    stages: list[Stage] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    cell_keys: list[str] = field(default_factory=list)
    excluded: list[tuple[Cell, str]] = field(default_factory=list)


def load_plan(path: Path, *, variant: str | None = None, max_cells: int = MAX_CELLS) -> Plan:
    """Read a grid and plan it.

    Args:
        path: The grid file.
        variant: Name of one of its variants.
        max_cells: Most cells that are accepted, before exclusions.

    Raises:
        UserError: With `file:line:col` of the first thing in the grid that cannot be planned.
    """
    grid, document = load_grid(path)
    selection = select(grid, document, variant)
    check_count(selection, document, max_cells)
    check_names(selection, document)
    with many_objects():
        cells, excluded = expand(selection, document)
        return Planner(selection, document).plan(cells, excluded)


def is_hub(arch: str) -> bool:
    """Whether pretrained ImageNet-1K weights of an architecture can be had."""
    return arch in TORCHVISION_GMACS or arch.startswith("timm.")


T = TypeVar("T")


class Planner:
    """Builds the stages of cells, remembering every part that cells share."""

    def __init__(self, selection: Selection, document: Document) -> None:
        self.selection, self.document = selection, document
        listed = [m for part in selection.products for m in part.item["method"]]
        self.rules = parse_rules(selection.overrides, listed + [p.item.method for p in selection.cells], document)
        self.matcher = Matcher([{a: tuple(v) for a, v in rule.conditions.items()} for rule in self.rules])
        self.places = Places(selection, document)
        self.students = StudentPlanner(self.places)
        self.maker = StageMaker()
        self.stages: dict[str, dict[str, Stage]] = {kind: {} for kind in KINDS}
        self.memo: dict[tuple[Any, ...], Any] = {}
        #: Indices of overrides that cells met, each combination once.
        self.met: set[tuple[int, ...]] = set()
        #: Indices of overrides that shared stages took values from; that teachers were trained, or loaded, under.
        self.effective: set[int] = set()
        self.trained: set[int] = set()
        self.loaded: set[int] = set()
        #: Indices of overrides that decided whose teachers a cell uses.
        self.chosen: set[int] = set()

    def plan(self, cells: list[Cell], excluded: list[tuple[Cell, str]]) -> Plan:
        """Plan all cells, then check that every override had an effect."""
        keys = [self.evaluation(cell).key for cell in cells]
        self.check_effects(cells)
        stages = [stage for kind in KINDS for stage in self.stages[kind].values()]
        return Plan(self.selection.name, stages, cells, keys, excluded)

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Remember what `make` returns."""
        if key not in self.memo:
            self.memo[key] = make()
        found: T = self.memo[key]
        return found

    def add(self, kind: str, spec: Any, inputs: dict[str, str]) -> Stage:
        """A stage; the first of two equal ones is kept."""
        stage = self.maker.make(kind, spec, inputs)
        return self.stages[kind].setdefault(stage.key, stage)

    # Stages that all methods share.

    def prepare(self, name: str) -> Stage:
        """The dataset as prepared squares."""

        def make() -> Stage:
            d = dataset(name)
            form: Literal["beton", "folder"] = "beton" if self.selection.loader == "ffcv" else "folder"
            return self.add("prepare", PrepareSpec(name, d.classes, d.size, d.stored, d.per_class, form), {})

        return self.once(("prepare", name), make)

    def teacher(self, name: str, arch: str, special: tuple[tuple[str, Any], ...] = ()) -> Stage:
        """One teacher; it depends on the dataset and the architecture, and on what a method's labels ask for."""
        return self.once(("teacher", name, arch, special), lambda: self._make_teacher(dataset(name), arch, special))

    def _make_teacher(self, d: Dataset, arch: str, special: tuple[tuple[str, Any], ...]) -> Stage:
        used = [i for i, r in enumerate(self.rules) if r.teacher and r.meets_shared(d.name, arch)]
        rules = [self.rules[i] for i in used]
        values: dict[str, Any] = dict(special)
        for rule in rules:
            values |= rule.teacher
        can_load = d.base == "imagenet1k" and d.classes == REGISTRY["imagenet1k"].classes and is_hub(arch)
        weights: Weights = values.pop("weights", "pretrained" if can_load and not special else "scratch")
        if weights == "pretrained" and not can_load:
            raise UserError(
                f"there are no pretrained weights of {arch} for {d.name}",
                where=self.places.where(rules, "teacher"),
                hint="teacher.weights: scratch or file; pretrained is for imagenet1k and torchvision or timm networks",
            )
        scratch = weights == "scratch"
        if special and not scratch:
            raise UserError(
                f"label teachers with {special[0][0]} {special[0][1]} are trained, but teacher.weights is {weights}",
                where=self.places.where(rules, "teacher"),
                hint="remove teacher.weights, or the method whose labels need them",
            )
        seed = values.pop("seed", 0) if scratch else 0
        (self.trained if scratch else self.loaded).update(i for i in used if set(self.rules[i].teacher) - {"weights"})
        self.effective.update(used)
        recipe = self.places.guard(lambda: self._recipe(d, values), rules, "teacher") if scratch else None
        spec = TeacherSpec(d.name, arch, weights, recipe, seed, self.selection.loader, self.selection.precision)
        return self.add("teacher", spec, {"prepare": self.prepare(d.name).key} if scratch else {})

    @staticmethod
    def _recipe(d: Dataset, values: dict[str, Any]) -> TeacherRecipe:
        recipe = replace(teacher_recipe(d.base), **values)
        if recipe.stop is not None and recipe.stop > recipe.epochs:
            raise UserError(
                f"a teacher on {d.name} stops after epoch {recipe.stop}, but trains for {recipe.epochs}",
                hint="the method's label teachers stop early; give it an earlier epoch, or set teacher.epochs higher",
            )
        if values.get("warmup") and recipe.warmup >= recipe.epochs:
            raise UserError(
                f"a teacher on {d.name} warms up for {recipe.warmup} epochs, but trains for {recipe.epochs}",
                hint="set teacher.warmup lower, or teacher.epochs higher",
            )
        return recipe

    def statistics(self, name: str, arch: str) -> Stage:
        """Statistics of one teacher; like the teacher, the same for all methods."""

        def make() -> Stage:
            d = dataset(name)
            small = d.size < 96
            values: dict[str, Any] = {
                "per_class": None,
                "crop": (1.0, 1.0) if small else (0.08, 1.0),
                "flip": d.base != "digits",
                "patch": 4 if small else 16,
                "batch": 256,
                "seed": 0,
            }
            for i, rule in enumerate(self.rules):
                if rule.statistics and rule.meets_shared(name, arch):
                    values |= rule.statistics
                    self.effective.add(i)
            spec = StatisticsSpec(name, arch, loader=self.selection.loader, **values)
            inputs = {"prepare": self.prepare(name).key, "teacher": self.teacher(name, arch).key}
            return self.add("statistics", spec, inputs)

        return self.once(("statistics", name, arch), make)

    def teacher_inputs(
        self, name: str, archs: tuple[str, ...], special: tuple[tuple[str, Any], ...] = ()
    ) -> dict[str, str]:
        """Inputs `teacher.0`, `teacher.1`, ..."""
        return self.once(
            ("teachers", name, archs, special),
            lambda: {f"teacher.{i}": self.teacher(name, a, special).key for i, a in enumerate(archs)},
        )

    # What a cell makes of its method.

    def method(self, cell: Cell, matches: tuple[int, ...]) -> tuple[Method, dict[str, Any]]:
        """The method with its values for the cell, and these values as a dict that cells share."""

        def make() -> tuple[Method, dict[str, Any]]:
            cls = get(cell.method)
            rules = [self.rules[i] for i in matches]
            values = method_values(cell.method, rules, self.document)
            made = self.places.guard(
                lambda: cls.for_dataset(dataset(cell.dataset).base, cell.ipc, values), rules, "method"
            )
            return made, {f.name: getattr(made, f.name) for f in fields(made)}

        return self.once(("method", cell.method, cell.dataset, cell.ipc, matches), make)

    def archs(self, cell: Cell, matches: tuple[int, ...], table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The cell's teachers; under protocol `paper` those of the paper, unless an override says `teachers: grid`."""
        own: tuple[str, ...] = self.once(("archs", cell.teacher), lambda: tuple(cell.teacher.split("+")))
        if cell.protocol != "paper":
            return own
        said = [i for i in matches if self.rules[i].teachers]
        self.chosen.update(said)
        if said and self.rules[said[-1]].teachers == "grid":
            return own
        return table.get(dataset(cell.dataset).base, own)

    def synthesis(self, cell: Cell, matches: tuple[int, ...], row: Row) -> Stage:
        """The distilled set of a cell; seeds share it if nothing in it is drawn."""
        seed = cell.seed if row.drawn else 0
        found = row.syntheses.get(seed)
        if found is None:
            key = ("set", cell.method, cell.dataset, cell.ipc, row.archs, matches)
            values, inputs = self.once(key, lambda: self._make_set(cell, row.archs, matches))
            found = row.syntheses[seed] = self.add("synthesis", SynthesisSpec(seed=seed, **values), inputs)
        return found

    def _make_set(
        self, cell: Cell, archs: tuple[str, ...], matches: tuple[int, ...]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What a distilled set is whatever the seed, and its inputs."""
        cls = get(cell.method)
        params = self.method(cell, matches)[1]
        inputs: dict[str, str] = {}
        if "real" in cls.needs:
            self._check_ipc(cell)
            inputs["prepare"] = self.prepare(cell.dataset).key
        if "teacher" in cls.needs:
            inputs |= self.teacher_inputs(cell.dataset, archs)
        if "statistics" in cls.needs:
            inputs |= {f"statistics.{i}": self.statistics(cell.dataset, a).key for i, a in enumerate(archs)}
        values = {
            "method": cell.method,
            "version": cls.version,
            "params": params,
            "dataset": cell.dataset,
            "ipc": cell.ipc,
            "teachers": archs,
            "loader": self.selection.loader,
            "precision": self.selection.precision,
            **engine_values(cell.method, [self.rules[i] for i in matches]),
        }
        return values, inputs

    def _check_ipc(self, cell: Cell) -> None:
        d = dataset(cell.dataset)
        if cell.ipc > d.train // d.classes:
            raise UserError(
                f"IPC {cell.ipc} of {cell.method} needs more real images than {cell.dataset} has",
                where=self.places.where((), ""),
                hint=f"{d.train // d.classes} training images a class on average",
            )

    # How a cell's student learns, and its row.

    def row(self, cell: Cell, matches: tuple[int, ...]) -> Row:
        """What the seeds of a cell share."""
        key = ("row", cell.method, cell.dataset, cell.ipc, cell.teacher, cell.student, cell.protocol, matches)
        return self.memo.get(key) or self.once(key, lambda: self._make_row(cell, matches))

    def _make_row(self, cell: Cell, matches: tuple[int, ...]) -> Row:
        cls = get(cell.method)
        student = self.students.plan(
            cell,
            self.method(cell, matches)[0],
            lambda: self.archs(cell, matches, cls.paper_label_teachers),
            [self.rules[i] for i in matches],
        )
        archs = self.archs(cell, matches, cls.paper_teachers) if cls.needs & {"teacher", "statistics"} else ()
        made: dict[int, Stage] = self.once(("syntheses", cell.method, cell.dataset, cell.ipc, archs, matches), dict)
        key = ("relabels", cell.dataset, cell.ipc, student.labels, student.archs, student.relabel, student.special)
        row = Row(student, archs, not cls.deterministic, made, self.once(key, dict), self.prepare(cell.dataset).key, {})
        self.synthesis(cell, matches, row)  # its teachers are listed first
        if student.relabel is None and student.archs:
            row.teachers.update(self.teacher_inputs(cell.dataset, student.archs, student.special))
        return row

    def evaluation(self, cell: Cell) -> Stage:
        """The evaluation of a cell, and everything that it needs."""
        matches = self.matcher(cell)
        self.met.add(matches)
        row = self.row(cell, matches)
        student = row.student
        synthesis = self.synthesis(cell, matches, row)
        inputs = {"prepare": row.prepare, "synthesis": synthesis.key, **row.teachers}
        if student.relabel is not None:
            inputs["relabel"] = self.relabel(cell, synthesis, row).key
        spec = EvaluationSpec(
            cell.method,
            cell.dataset,
            cell.ipc,
            cell.teacher,
            cell.student,
            cell.protocol,
            cell.seed,
            student.labels,
            student.label,
            student.recipe,
            self.selection.loader,
            self.selection.precision,
        )
        return self.add("evaluation", spec, inputs)

    def relabel(self, cell: Cell, synthesis: Stage, row: Row) -> Stage:
        """The labels on disk of a cell; students with the same recipe share them, and seeds if no views are drawn."""
        student = row.student
        recipe, labels, archs = student.relabel, student.labels, student.archs
        assert recipe is not None and labels in ("stored", "vector")
        seed = 0 if labels == "vector" else cell.seed
        found = row.relabels.get((synthesis.key, seed))
        if found is None:
            spec = RelabelSpec(labels, cell.dataset, cell.ipc, archs, recipe, seed, self.selection.precision)
            teachers = self.teacher_inputs(cell.dataset, archs, student.special)
            found = self.add("relabel", spec, {"synthesis": synthesis.key, **teachers})
            row.relabels[synthesis.key, seed] = found
        return found

    # Overrides without effect.

    def check_effects(self, cells: list[Cell]) -> None:
        """Refuse an override that no cell, and no teacher of theirs, takes values from."""
        met = set().union(*self.met)
        named = {
            (c.dataset, arch)
            for c in {(c.dataset, c.teacher): c for c in cells}.values()
            for arch in c.teacher.split("+")
        }
        for i, rule in enumerate(self.rules):
            where = self.document.where(rule.location)
            shared = i in self.effective or (rule.shared and any(rule.meets_shared(*pair) for pair in named))
            if rule.required and i not in met and not shared:
                raise UserError("override matches no cell", where=where, hint="remove it, or correct its conditions")
            if rule.required and rule.teachers and i in met - self.chosen:
                raise UserError(
                    f"teachers: {rule.teachers} has no effect: no cell that it matches has teachers of its paper",
                    where=where,
                    hint="only protocol paper has; remove it, or correct its conditions",
                )
            if rule.required and i in self.loaded - self.trained:
                name = next(name for name in rule.teacher if name != "weights")
                raise UserError(
                    f"teacher.{name} has no effect: the weights of these teachers exist already",
                    where=where,
                    hint="remove it, or set teacher.weights: scratch",
                )
