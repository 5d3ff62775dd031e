"""The engine of `compress` and `consolidate`: a linear map, trained over subsets of rows to keep similarities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ._argument_checks import check_int, check_number
from ._matrices import Opened
from ._shards import Shards
from ._turned_classes import of_trained_classes
from .distillation import row_log_probs

START_ROWS = 2**15
"""Rows that the principal axes are computed from, at most."""
FEWEST_ROWS, MOST_ROWS = 512, 2048
"""Rows of a subset, by default. With 41 classes 2,048 were worse than 512, with 1,072 and with 3,678 better."""
RIDGE = 1e-2
"""Of the regression that a map may start from, by the mean variance."""
MOST_TRUST = 0.3
"""With 31 classes a map that starts from the features' own axes was best, with 1,072 one that starts nearer to its
teachers, with 459 there was no difference up to here."""
BLOCK_ROWS = 2**11
"""Rows that are read at a time where more than a subset is needed."""
UNLABELLED = -1
"""The label of a row whose class is not known."""


class Rows:
    """The rows of a matrix (N, k), wherever it lies; those asked for come normalised, to where the map is trained.

    An array, memory-mapped or not, and a tensor on another device are read row by row, never copied whole.

    Args:
        name: what messages call the matrix.
        matrix: (N, k), floating point, finite: a tensor or array. What lies in files is checked as it is read.
        device: where rows are wanted.
        dtype: what rows are wanted in.
        rows: the numbers of those that will be asked for; None: all.
    """

    def __init__(
        self,
        name: str,
        matrix: Opened,
        device: torch.device,
        dtype: torch.dtype,
        rows: np.ndarray | None = None,
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.matrix = matrix.detach() if isinstance(matrix, torch.Tensor) else matrix
        self._checked = False
        if not isinstance(matrix, np.memmap | Shards):
            for first in range(0, len(matrix) if rows is None else len(rows), BLOCK_ROWS):
                block = slice(first, first + BLOCK_ROWS)
                self._read(block if rows is None else rows[block])
            self._checked = True

    def __len__(self) -> int:
        return self.matrix.shape[0]

    @property
    def columns(self) -> int:
        return self.matrix.shape[1]

    @property
    def on_device(self) -> bool:
        """Whether rows are where they are wanted, so that reading them waits for nobody."""
        return isinstance(self.matrix, torch.Tensor) and self.matrix.device == self.device

    def take(self, rows: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, (n, k), each of length 1 (a row of zeros stays as it is)."""
        return F.normalize(self.as_they_are(rows), dim=1)

    def as_they_are(self, rows: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, where they are wanted, not normalised."""
        taken = self._read(rows)
        if taken.device.type == "cpu" and self.device.type == "cuda":
            taken = taken.pin_memory()
        return taken.to(self.device, non_blocking=True).to(self.dtype)

    def _read(self, rows: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Rows as they are, where they are, those of arrays copied; checked where they have not been yet."""
        if isinstance(self.matrix, torch.Tensor):
            read = self.matrix[rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.matrix.device)]
        else:
            read = torch.from_numpy(np.array(self.matrix[rows], dtype=self.matrix.dtype.newbyteorder("=")))
        if not self._checked:
            finite = torch.linalg.vector_norm(read.flatten(1), dim=1, dtype=self.dtype).isfinite()
            if not finite.all():
                broken = int((~finite).nonzero()[0])
                first = rows.start + broken if isinstance(rows, slice) else int(rows[broken])
                raise ValueError(
                    f"{self.name} has rows that are NaN or infinite, row {first} among them; leave such rows out (and "
                    "their labels), or see what the model makes of their samples"
                )
        return read


class MadeRows:
    """What is made of rows as they are read, such as a head's embeddings of features: it has what `train_maps` asks of
    `Rows`.

    Args:
        rows: what it is made of.
        columns: k.
        make: from rows as they are, (n, …), to (n, k).
    """

    def __init__(self, rows: Rows, columns: int, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.name, self.device, self.dtype, self.columns = rows.name, rows.device, rows.dtype, columns
        self.on_device = rows.on_device
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, (n, k), each of length 1."""
        return F.normalize(self._make(self._rows.as_they_are(rows)).to(self.dtype), dim=1)

    def kept(self) -> Rows:
        """All of them, made once."""
        blocks = [slice(first, first + BLOCK_ROWS) for first in range(0, len(self), BLOCK_ROWS)]
        return Rows(self.name, torch.cat([self.take(block) for block in blocks]), self.device, self.dtype)


class Settings(NamedTuple):
    """What `compress` and `consolidate` let a user set."""

    label_weight: float
    temperature: float
    subset_rows: int | None
    steps: int
    learning_rate: float
    seed: int | torch.Generator

    def checked(self) -> Settings:
        if self.subset_rows is not None:
            check_int("subset_rows", self.subset_rows, at_least=2)
        check_int("steps", self.steps, at_least=0)
        check_number("label_weight", self.label_weight, at_least=0)
        for name in ("temperature", "learning_rate"):
            check_number(name, getattr(self, name), above=0)
        if not isinstance(self.seed, torch.Generator):
            check_int("seed", self.seed, at_least=0)
        return self

    def drawn_seed(self) -> int:
        """The seed, or one from the generator, which moves on."""
        if isinstance(self.seed, int):
            return self.seed
        return int(torch.randint(2**62, (), generator=self.seed, device=self.seed.device))


def checked_sizes(size: int | Sequence[int], largest: int) -> list[int]:
    """The sizes of the maps, each at most that of what is mapped."""
    sizes = list(size) if isinstance(size, Sequence) else [size]
    if not sizes:
        raise ValueError("size is an empty list; give at least one size")
    for d in sizes:
        check_int("size", d, at_least=1)
        if d > largest:
            raise ValueError(
                f"size must be at most {largest}, the dimensions that there are, got {d}; a linear map adds none: "
                "leave them as they are"
            )
    return sizes


class Objective(NamedTuple):
    """KL( softmax( (e_S e_Sᵀ + λ [y_i = y_j]) / T ) ‖ softmax( cos(x_S W) / T ) ), as `distillation.divergence`.

    The diagonal is left out; with several teachers e it is the mean of the KLs.
    """

    temperature: float
    label_weight: float

    def teacher_probs(self, teachers: Sequence[torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        """(n, n), the mean of the teachers' softmax: what the gradient of the mean of the KLs depends on.

        Args:
            teachers: e_S of each, (n, k_i), normalised.
            labels: y_S, (n,), `UNLABELLED` where not known.
        """
        bonus = None if labels is None else self.label_weight * same_class(labels)
        probs = [self._probs(e @ e.T if bonus is None else torch.addmm(bonus.to(e.dtype), e, e.T)) for e in teachers]
        return probs[0] if len(probs) == 1 else torch.stack(probs).mean(dim=0)

    def gradient(self, weight: torch.Tensor, x: torch.Tensor, teacher_probs: torch.Tensor) -> torch.Tensor:
        """The objective's gradient with respect to the map, (d, F), in closed form: with D = cos(x Wᵀ), as in
        `distillation`, ∂ KL / ∂D = T / n · ( softmax(D / T) - teacher_probs ).

        Args:
            weight: W, (d, F).
            x: x_S, (n, F).
            teacher_probs: (n, n).
        """
        mapped = x @ weight.T
        length = torch.linalg.vector_norm(mapped, dim=1, keepdim=True).clamp_min(1e-12)
        z = mapped / length
        into_D = self._probs(z @ z.T).sub_(teacher_probs).mul_(self.temperature / len(x))
        into_z = (into_D + into_D.T) @ z
        into_mapped = (into_z - z * (into_z * z).sum(dim=1, keepdim=True)) / length
        return into_mapped.T @ x

    def _probs(self, similarities: torch.Tensor) -> torch.Tensor:
        each_itself = torch.arange(len(similarities), device=similarities.device)
        return row_log_probs(similarities, self.temperature, each_itself).exp_()


def same_class(labels: torch.Tensor) -> torch.Tensor:
    """[y_i = y_j], (n, n); a row that is not labelled is of nobody's class."""
    return (labels[:, None] == labels) & (labels != UNLABELLED)


def train_maps(
    x: Rows | MadeRows,
    teachers: Sequence[Rows | MadeRows],
    sizes: Sequence[int],
    settings: Settings,
    *,
    rows: np.ndarray | None = None,
    labels: torch.Tensor | None = None,
) -> dict[int, torch.Tensor]:
    """The map for each size, W of shape (d, F): what one of them is does not depend on the others.

    They are trained side by side, so that rows are read, and teachers compared, once for all. Each starts from the
    principal axes of x, or nearer to its teachers, see `start_of`. What Adam trains is not W but M, in W = M Bᵀ, B the
    principal axes of x, each scaled by the square root of its standard deviation. For Adam moves every coordinate
    alike: those of W also along directions in which the training rows hardly vary, and there classes that were not seen
    suffer.

    Args:
        x: what is mapped, (N, F).
        teachers: whose similarities are kept, (N, k_i) each; x itself may be one.
        sizes: each d, at most F.
        rows: the numbers of those to train on, (M,), of 0 to N - 1; None: all.
        settings: of which the seed decides which rows meet.
        labels: (N,), integers, `UNLABELLED` where not known; on the device of x.
    """
    draw = np.random.default_rng(settings.drawn_seed())
    objective = Objective(settings.temperature, settings.label_weight)
    steps = settings.steps
    first_rows = np.sort(chosen(rows, len(x), START_ROWS, draw))
    axes = principal_axes(blocks_of(x, first_rows))
    scale = axes.pace().sqrt()
    B = (axes.directions * scale).to(x.device, x.dtype)
    taught, classes = taught_rows(first_rows, labels)
    start = start_of(axes, x, teachers, taught, trust_in_teachers(classes, x.columns))
    trained = {d: (start[:d] * (d**0.5 / start[:d].norm()) / scale).to(B) for d in dict.fromkeys(sizes)}
    optimizer = torch.optim.Adam(list(trained.values()), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    plan = subsets(rows, len(x), settings.subset_rows or subset_rows_for(labels), steps, draw)
    on_device = torch.from_numpy(plan).to(x.device)
    text = ", ".join(map(str, trained))
    for step in tqdm(range(steps), desc=f"{x.columns} to {text}", unit="step", delay=3, leave=False):
        x_S = x.take(on_device[step] if x.on_device else plan[step])
        e_S = [x_S if e is x else e.take(on_device[step] if e.on_device else plan[step]) for e in teachers]
        q = objective.teacher_probs(e_S, None if labels is None else labels[on_device[step]])
        for M in trained.values():
            M.grad = objective.gradient(M @ B.T, x_S, q) @ B
        optimizer.step()
        decay.step()
    return {size: M @ B.T for size, M in trained.items()}


def subset_rows_for(labels: torch.Tensor | None) -> int:
    """Rows of a subset where none are set: enough that a row finds others of its class, however many classes there are.

    Args:
        labels: (N,), `UNLABELLED` where not known.
    """
    return min(max(FEWEST_ROWS, 2 * classes_of(labels)), MOST_ROWS)


def taught_rows(rows: np.ndarray, labels: torch.Tensor | None) -> tuple[np.ndarray, int]:
    """Those of the rows whose class the teachers were trained on, and how many such classes there are."""
    if labels is None:
        return rows, 0
    of_trained = of_trained_classes(labels)
    return rows[of_trained.cpu().numpy()[rows]], classes_of(labels[of_trained])


def classes_of(labels: torch.Tensor | None) -> int:
    """How many there are."""
    return 0 if labels is None else len(labels[labels != UNLABELLED].unique())


class Axes(NamedTuple):
    """The principal axes of rows: the eigenvectors of their covariance, and the variance along each, falling.

    Attributes:
        directions: (F, F), orthonormal columns, float64, on the CPU.
        variances: (F,).
    """

    directions: torch.Tensor
    variances: torch.Tensor

    def pace(self) -> torch.Tensor:
        """(F,), the standard deviation along each axis, by its mean over the variance that there is."""
        variances = self.variances.clamp_min(1e-12 * self.variances[0].clamp_min(1e-30))
        deviations = variances.sqrt()
        return deviations * variances.sum() / (deviations * variances).sum()


def principal_axes(blocks: Iterator[torch.Tensor]) -> Axes:
    """Of all rows of the blocks, (n, F) each."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        n += len(block)
        total = total.to(block) + block.sum(dim=0)
        squares = squares.to(block) + block.T @ block
    mean = total.double().cpu() / n
    variances, directions = torch.linalg.eigh(squares.double().cpu() / n - torch.outer(mean, mean))
    return Axes(directions.flip(1), variances.flip(0))


def start_of(
    axes: Axes, x: Rows | MadeRows, teachers: Sequence[Rows | MadeRows], rows: np.ndarray, trust: float
) -> torch.Tensor:
    """Where the map starts from: between the principal axes of x and what predicts the teachers' embeddings best.

    With t = x whitened, v the variances of x, and P the ridge regression of a teacher's embeddings on t, the directions
    are the eigenvectors of (1 - trust) · diag(v) / Σ v + trust · PᵀP / ‖P‖², by falling eigenvalue, each times its
    root: with trust 0 the principal axes of x, with trust 1 reduced-rank regression.

    Args:
        rows: the numbers of those to compute it from.
        trust: 0 to 1.

    Returns:
        (F, F), float64, on the CPU, along the axes of x: its first d rows are the map to d dimensions.
    """
    if trust == 0 or all(teacher is x for teacher in teachers):
        return torch.eye(x.columns, dtype=torch.float64)
    variances = axes.variances.clamp_min(1e-12 * axes.variances[0].clamp_min(1e-30))
    deviations = variances.sqrt()
    of_both = torch.diag((1 - trust) * variances / variances.sum())
    for teacher in teachers:
        P = covariance(x, teacher, rows) @ axes.directions * deviations / (variances + RIDGE * variances.mean())
        of_both += trust / len(teachers) * P.T @ P / P.square().sum().clamp_min(1e-30)
    eigenvalues, directions = torch.linalg.eigh(of_both)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * largest.sign()  # rounding does not decide which way they point
    return (directions * eigenvalues.clamp_min(0).sqrt()).flip(1).T / deviations


def trust_in_teachers(classes: int, columns: int) -> float:
    """How far the map starts from what the teachers hold similar: classes² / (classes² + F²), at most `MOST_TRUST`.

    A teacher that was trained on few classes knows little of others, and the features' own axes are safer.

    Args:
        classes: that the teachers were trained on.
        columns: F.
    """
    return min(classes**2 / (classes**2 + columns**2), MOST_TRUST)


def covariance(x: Rows | MadeRows, e: Rows | MadeRows, rows: np.ndarray) -> torch.Tensor:
    """Of e and x over these rows, (k, F), float64, on the CPU."""
    sum_x, sum_e, products = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for first in range(0, len(rows), BLOCK_ROWS):
        x_block, e_block = (of.take(rows[first : first + BLOCK_ROWS]) for of in (x, e))
        sum_x = sum_x.to(x_block) + x_block.sum(dim=0)
        sum_e = sum_e.to(x_block) + e_block.sum(dim=0)
        products = products.to(x_block) + e_block.T @ x_block
    mean_x, mean_e, mean_product = (total.double().cpu() / len(rows) for total in (sum_x, sum_e, products))
    return mean_product - torch.outer(mean_e, mean_x)


def blocks_of(x: Rows | MadeRows, rows: np.ndarray) -> Iterator[torch.Tensor]:
    """The rows, a block at a time."""
    some = False
    for first in range(0, len(rows), BLOCK_ROWS):
        block = x.take(rows[first : first + BLOCK_ROWS])
        some = some or bool(block.any())
        yield block
    if not some:
        raise ValueError(f"all rows of {x.name} are zero; see what was written there")


def chosen(rows: np.ndarray | None, count: int, wanted: int, draw: np.random.Generator) -> np.ndarray:
    """At most so many of the rows, or of 0 to count - 1, in the order drawn; in time and memory of those wanted."""
    if rows is None:
        return draw.choice(count, min(wanted, count), replace=False)
    return draw.choice(rows, min(wanted, len(rows)), replace=False)


def subsets(rows: np.ndarray | None, count: int, subset_rows: int, steps: int, draw: np.random.Generator) -> np.ndarray:
    """The rows that each step compares, (steps, subset_rows): none comes again before all have been taken.

    Args:
        rows, count: as in `chosen`. Where there are fewer than `subset_rows`, a subset is all of them.
    """
    count = count if rows is None else len(rows)
    subset_rows = min(subset_rows, count)
    plan = np.empty((steps, subset_rows), dtype=np.int64)
    for first in range(0, steps, count // subset_rows):
        block = plan[first : first + count // subset_rows]
        block[:] = chosen(rows, count, block.size, draw).reshape(block.shape)
    return np.sort(plan, axis=1)
