"""How the student of a cell learns: its recipe, its labels, and what of them is refused, before stages are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from suite.errors import UserError
from suite.grid.expand import Cell
from suite.grid.overrides import Rule, label_values, student_values
from suite.grid.places import Places
from suite.methods import Method
from suite.spec.datasets import dataset
from suite.spec.recipes import WHOLE, LabelRecipe, Labels, RelabelRecipe, StudentRecipe, matched_recipe
from suite.spec.stages import Stage
from suite.spec.storage import stream_shape

#: Images that teachers see at a time when they make a vector for each; part of what `norm` and `part` mean there.
VECTOR_BATCH = 100
#: What a stored stream cannot replay, and the value of a student's recipe that does without.
_NOT_STORED: dict[str, Any] = {"pad": 0, "patch_shuffle": 1, "augment": "none"}
#: For fields of a label recipe: the policy that alone uses them.
_ONLY: Mapping[str, Labels] = {"prune": "stored", "temperature": "vector"}
#: For fields of a student's recipe: the field, and the value of it, that alone uses them.
_WITH: Mapping[str, tuple[str, str]] = {
    "milestones": ("schedule", "step"),
    "gamma": ("schedule", "step"),
    "magnitude": ("augment", "randaugment"),
    "temperature": ("loss", "kl"),
    "squared": ("loss", "kl"),
    "ce_weight": ("loss", "mse_gt"),
    "momentum": ("optimizer", "sgd"),
}
#: Those that are refused where nothing uses them. Losses differ by labels, and the others are set for all of them.
_REFUSED = ("milestones", "gamma", "magnitude")


@dataclass(frozen=True)
class Student:
    """How a cell's student learns.

    Attributes:
        labels: Label policy.
        label: How soft labels follow from logits; fields that the policy does not use have their defaults.
        recipe: How it is trained.
        relabel: How labels on disk are made; None for other policies.
        archs: Its label teachers; none for hard labels.
        special: Fields in which its label teachers differ from the grid's.
    """

    labels: Labels
    label: LabelRecipe
    recipe: StudentRecipe
    relabel: RelabelRecipe | None
    archs: tuple[str, ...] = ()
    special: tuple[tuple[str, Any], ...] = ()


def used(label: LabelRecipe, labels: Labels, teachers: int) -> LabelRecipe:
    """A label recipe with defaults for everything that does not change these labels, so that it splits no keys."""
    if labels == "hard":
        return LabelRecipe()
    if teachers == 1:  # every ensemble of one is that teacher
        label = replace(label, ensemble="mean")
    if label.ensemble != "weighted":
        label = replace(label, weights=())
    unused = {name: getattr(LabelRecipe(), name) for name, policy in _ONLY.items() if policy != labels}
    return replace(label, **unused)


def used_recipe(recipe: StudentRecipe) -> StudentRecipe:
    """A student's recipe with defaults for everything that does not change its training, so that it splits no keys."""
    unused = [name for name, (field, value) in _WITH.items() if getattr(recipe, field) != value]
    return replace(recipe, **{name: getattr(StudentRecipe(), name) for name in unused})


@dataclass(frozen=True, slots=True)
class Row:
    """What the seeds of a cell share.

    Attributes:
        student: How the student learns.
        archs: Teachers of the synthesis.
        drawn: Whether seeds have syntheses of their own.
        syntheses: These so far, by seed; rows of other students share them.
        relabels: Labels on disk so far, by the key of their synthesis and by seed; rows of equal recipes share them.
        prepare: Key of the prepared dataset.
        teachers: Inputs of the evaluation that it asks for labels.
    """

    student: Student
    archs: tuple[str, ...]
    drawn: bool
    syntheses: dict[int, Stage]
    relabels: dict[tuple[str, int], Stage]
    prepare: str
    teachers: dict[str, str]


class StudentPlanner:
    """Makes students of cells.

    Args:
        places: Where errors belong.
    """

    def __init__(self, places: Places) -> None:
        self.places = places

    def plan(self, cell: Cell, method: Method, teachers: Callable[[], tuple[str, ...]], rules: list[Rule]) -> Student:
        """How the cell's student learns.

        Args:
            cell: The cell.
            method: Its method, with its values.
            teachers: Gives the teachers that label its images, if any do.
            rules: Overrides that the cell meets, in order.

        Raises:
            UserError: If recipe, labels and overrides do not fit together.
        """
        d, labels = dataset(cell.dataset), type(method).label_policy(dataset(cell.dataset).base, cell.protocol)
        recipe = matched_recipe(d.base)
        if cell.protocol == "paper":
            recipe = self.places.guard(
                lambda: method.recipe(d.base, d.classes, cell.ipc, cell.student), rules, "method"
            )
        for rule in rules:
            labels = rule.labels or labels
        recipe = self._loss(cell, replace(recipe, **student_values(rules)), labels, rules)
        self._check_recipe(cell, recipe, rules)
        recipe = used_recipe(recipe)
        if labels == "hard":
            self._check_used({}, labels, cell, rules)
            if cell.protocol == "matched":
                self._check_matched(rules)
            return Student(labels, LabelRecipe(), recipe, None)
        archs = teachers()
        label = self._label(cell, method, labels, archs, rules)
        images = cell.ipc * d.classes
        relabel = None
        if labels == "stored":
            relabel = self._stored(recipe, label, images, rules)
        elif labels == "vector":
            relabel = RelabelRecipe(1, min(VECTOR_BATCH, images), WHOLE, False, False, label)
        batch = min(images, recipe.batch if labels != "vector" else VECTOR_BATCH)
        if label.part > batch:
            raise UserError(
                f"label.part {label.part} is more than the {batch} images of a batch",
                where=self.places.where(rules, "label" if label_values(rules) else "student"),
                hint="make it a part of the batch, or 0 for teachers in eval mode",
            )
        if cell.protocol == "matched":
            self._check_matched(rules)
        special: Mapping[str, Any] = {}
        if cell.protocol == "paper":
            special = self.places.guard(lambda: dict(method.label_teacher(d.base, cell.ipc)), rules, "method")
        return Student(labels, label, recipe, relabel, archs, tuple(sorted(special.items())))

    def _loss(self, cell: Cell, recipe: StudentRecipe, labels: Labels, rules: list[Rule]) -> StudentRecipe:
        """Probabilities, hard or as vectors, are learnt with cross-entropy; logits are not."""
        values = student_values(rules)
        where = self.places.where(rules, "student" if values else "labels")
        if labels in ("hard", "vector"):
            if values.get("loss", "ce") != "ce":
                raise UserError(
                    f"student.loss {recipe.loss} needs soft labels, but {cell.method} has hard ones"
                    if labels == "hard"
                    else f"student.loss {recipe.loss} needs logits, but {cell.method} has vectors of probabilities",
                    where=where,
                    hint="set labels: online or stored, or add conditions to when",
                )
            return replace(recipe, loss="ce")
        if recipe.loss == "ce":
            raise UserError(
                f"{labels} labels cannot be learnt with loss ce ({cell.method}, protocol {cell.protocol})",
                where=where,
                hint="set student.loss: kl or mse_gt, or labels: hard or vector",
            )
        return recipe

    def _check_recipe(self, cell: Cell, recipe: StudentRecipe, rules: list[Rule]) -> None:
        """Refuse what a worker would refuse, or do without a word, after hours of other stages."""
        name = f"({cell.method}, protocol {cell.protocol})"
        length = recipe.steps if recipe.epochs is None else recipe.epochs
        unit = "steps" if recipe.epochs is None else "epochs"
        batch = min(recipe.batch, cell.ipc * dataset(cell.dataset).classes)
        problem = None
        for part in _REFUSED:
            field, value = _WITH[part]
            if part in student_values(rules) and getattr(recipe, field) != value:
                problem = (
                    f"student.{part} has no effect on {field} {getattr(recipe, field)}",
                    f"student.{field}: {value}",
                )
        if recipe.schedule == "step" and not recipe.milestones:
            problem = "schedule step has no milestones", "student.milestones, or student.schedule: constant"
        if length is not None and recipe.warmup >= length:
            problem = f"a warm-up of {recipe.warmup} {unit} leaves nothing of {length}", "a smaller student.warmup"
        if recipe.accumulate > batch:
            what = f"a batch of {batch} images cannot be cut into {recipe.accumulate} parts"
            problem = what, f"student.accumulate to at most {batch}"
        if problem is not None:
            raise UserError(
                f"{problem[0]} {name}",
                where=self.places.where(rules, "student"),
                hint=f"set {problem[1]}, or add conditions to when",
            )

    def _label(
        self, cell: Cell, method: Method, labels: Labels, archs: tuple[str, ...], rules: list[Rule]
    ) -> LabelRecipe:
        """How labels follow from logits: the paper's way under `paper`, then the overrides.

        A method's weights belong to its paper's teachers by name: with others they are refused, not stretched. One
        teacher needs none.
        """
        d, label, values = dataset(cell.dataset), LabelRecipe(), label_values(rules)
        if cell.protocol == "paper":
            label = self.places.guard(lambda: method.label_recipe(d.base, d.classes, cell.ipc), rules, "method")
            own = type(method).paper_label_teachers.get(d.base)
            if (
                label.ensemble == "weighted"
                and len(archs) > 1
                and archs != own
                and not {"ensemble", "weights"} & {*values}
            ):
                raise UserError(
                    f"{cell.method} has label weights for its paper's teachers only, not for {'+'.join(archs)}",
                    where=self.places.where(rules, "teachers"),
                    hint="set label.ensemble: mean, or label.weights with one number a teacher",
                )
        label = replace(label, **values)
        self._check_used({"ensemble": label.ensemble}, labels, cell, rules)
        if (
            label.ensemble == "weighted"
            and len(label.weights) != len(archs)
            and (len(archs) > 1 or "weights" in values)
        ):
            raise UserError(
                f"{len(label.weights)} label weights for {len(archs)} teachers ({'+'.join(archs)})",
                where=self.places.where(rules, "label"),
                hint="set label.weights to one number a teacher",
            )
        return used(label, labels, len(archs))

    def _check_used(self, found: Mapping[str, Any], labels: Labels, cell: Cell, rules: list[Rule]) -> None:
        """Refuse values of `label` that labels of this kind do not use."""
        values = label_values(rules)
        plain = LabelRecipe()
        unused = [
            name
            for name, value in values.items()
            if labels == "hard" or (value != getattr(plain, name) and labels != _ONLY.get(name, labels))
        ]
        kind = f"{labels} labels"
        if "weights" in values and found.get("ensemble", "weighted") != "weighted":
            unused, kind = ["weights"], f"label.ensemble {found['ensemble']}"
        if unused:
            needed = _ONLY.get(unused[0])
            raise UserError(
                f"label.{unused[0]} has no effect on {kind} ({cell.method}, protocol {cell.protocol})",
                where=self.places.where(rules, "label"),
                hint="set label.ensemble: weighted"
                if kind.startswith("label.")
                else f"set labels: {needed or 'online, stored or vector'}, or add conditions to when",
            )

    def _check_matched(self, rules: list[Rule]) -> None:
        """Protocol `matched` trains the students of all methods alike, so no rule may except one of them."""
        for rule in rules:
            for section in ("student", "label"):
                if getattr(rule, section) and "method" in rule.conditions:
                    name = next(iter(getattr(rule, section)))
                    raise UserError(
                        f"{section}.{name} depends on method, but protocol matched is one recipe for all",
                        where=self.places.document.where(rule.location),
                        hint="add protocol: paper to when, or take method out of it",
                    )

    def _stored(self, recipe: StudentRecipe, label: LabelRecipe, images: int, rules: list[Rule]) -> RelabelRecipe:
        """Views and logits for as many epochs as the student trains."""
        for part, value in _NOT_STORED.items():
            if getattr(recipe, part) != value:
                raise UserError(
                    f"stored labels replay crops, flips and CutMix, but the recipe has {part}",
                    where=self.places.where(rules, "student" if student_values(rules) else "labels"),
                    hint=f"set student.{part}: {value}, or labels: online",
                )
        made = RelabelRecipe(1, min(recipe.batch, images), recipe.crop, recipe.flip, recipe.cutmix, label)
        per_epoch = stream_shape(made, images).per_epoch
        epochs = recipe.epochs if recipe.epochs is not None else -(-(recipe.steps or 0) // per_epoch)
        made = replace(made, epochs=epochs)
        if stream_shape(made, images).batches == 0:
            raise UserError(
                f"label.prune {label.prune} leaves no batch of {epochs} epochs with {per_epoch} of them each",
                where=self.places.where(rules, "label" if label_values(rules) else "student"),
                hint="prune less, train for more epochs, or use a smaller batch",
            )
        return made
