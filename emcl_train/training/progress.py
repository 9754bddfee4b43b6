"""How a training run is followed: a header and lines in a log file, a bar on a terminal, and what a step took."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from emcl_train.config import RunConfig
from emcl_train.data.annotations import Annotations, Split
from emcl_train.kinds import SYSTEMS
from emcl_train.runs.code import commit
from emcl_train.terminal import in_a_line, is_watched, progress_bar
from emcl_train.training.start import installed_version

SECONDS_BETWEEN_LINES = 10.0
"""A log file gets a line about this often."""
LINES_AN_EPOCH = 4
"""A log file gets as many lines of each epoch at least, however short it is; fewer if it has fewer steps."""
STEPS_OF_THE_PACE = 50
"""Over how many of the last steps their mean time is taken."""
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
BEFORE_THE_FIRST = "–"
"""Stands for a loss before there is one."""


@dataclass(frozen=True)
class Step:
    """A step that was just done."""

    number: int
    """Counted from 1, over all epochs."""
    batch: int
    """The same in its epoch."""
    loss: float
    lr: float


class Pace:
    """How long steps take, waiting for their data included, and how long those that are left will.

    Args:
        clock: seconds, from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None
        self._steps: deque[float] = deque(maxlen=STEPS_OF_THE_PACE)
        self._validations: deque[float] = deque(maxlen=STEPS_OF_THE_PACE)

    def begin(self) -> None:
        """What comes now counts to the next step, or validation."""
        self._since = self._clock()

    def step_done(self) -> float:
        """Returns the seconds since the step before, or since `begin`."""
        return self._done(self._steps)

    def validation_done(self) -> float:
        """Returns the seconds since `begin`."""
        return self._done(self._validations)

    def _done(self, times: deque[float]) -> float:
        now = self._clock()
        seconds = 0.0 if self._since is None else now - self._since
        self._since = now
        times.append(seconds)
        return seconds

    @property
    def seconds_per_step(self) -> float:
        """Mean of the last steps; 0 before the first."""
        return math.fsum(self._steps) / max(1, len(self._steps))

    def seconds_left(self, steps: int, validations: int) -> float:
        """What so many steps and validations will take, if they are as those before."""
        of_validation = math.fsum(self._validations) / max(1, len(self._validations))
        return steps * self.seconds_per_step + validations * of_validation


class Progress:
    """What one epoch after the other shows of itself: a bar where somebody watches, lines in a log file.

    Args:
        console: where it is shown.
        shown: whether this process shows anything.
        epochs: how many there are.
        steps_per_epoch: of the last one too, which `total_steps` may cut short.
        total_steps: of the whole run.
        pairs: of a step.
        clock: seconds, from any moment on.
    """

    def __init__(
        self,
        console: Console,
        *,
        shown: bool,
        epochs: int,
        steps_per_epoch: int,
        total_steps: int,
        pairs: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pace = Pace(clock)
        self._console = console
        self._shown = shown
        self._lines = shown and not is_watched(console)
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._pairs = pairs
        self._clock = clock
        self._last_line = -math.inf
        """When the last line was printed: the first step of a start has one."""

    def header(self, lines: Sequence[str]) -> None:
        """What a reader of a log file has to know first; a terminal has it in its own lines above."""
        if self._lines:
            for line in lines:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def epoch(self, number: int, done: int) -> Iterator[Callable[[Step], None]]:
        """Follow an epoch. Gives what takes each step that was done.

        Args:
            number: of the epoch, counted from 1.
            done: batches of it that were done before.
        """
        columns = (
            TextColumn(f"epoch {number}/{self._epochs}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.pace.begin()
        with progress_bar(*columns, console=self._console, disable=not self._shown) as bar:
            steps = min(self._steps_per_epoch, self._total_steps - (number - 1) * self._steps_per_epoch)
            task = bar.add_task("train", total=steps, completed=done, figures=f"loss {BEFORE_THE_FIRST}")

            def follow(step: Step) -> None:
                figures = self.figures(step, number)
                bar.update(task, completed=step.batch, figures=figures)
                if self._lines and self._is_time_for_a_line(step.batch, steps):
                    self._last_line = self._clock()
                    line = f"epoch {number}/{self._epochs}  step {step.number}/{self._total_steps}  {figures}"
                    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

            yield follow

    def figures(self, step: Step, epoch: int) -> str:
        """What a line, and the bar, say of a step and of those that are left."""
        seconds = self.pace.seconds_per_step
        clips = f"{self._pairs / seconds:.4g} clips/s" if seconds > 0 else ""
        left = self.pace.seconds_left(self._total_steps - step.number, self._epochs - epoch + 1)
        parts = (
            f"loss {step.loss:.3f}",
            f"lr {step.lr:.2e}",
            f"{seconds:.3g} s a step",
            clips,
            f"{duration(left)} left",
        )
        return "  ".join(filter(None, parts))

    def _is_time_for_a_line(self, batch: int, steps: int) -> bool:
        """Whether the last line is old enough, or the epoch has come to one of the places that always have one."""
        if self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            return True
        places = min(LINES_AN_EPOCH, steps)
        return batch in {math.ceil(place * steps / places) for place in range(1, places + 1)}


def duration(seconds: float) -> str:
    """A time in two units: "41 s", "12 min 5 s", "3 h 20 min".

    Examples:
        >>> duration(725)
        '12 min 5 s'
    """
    whole = max(0, round(seconds))
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {smaller_unit}"
    return f"{whole} s"


def header(
    config: RunConfig,
    annotations: Annotations,
    model: nn.Module,
    *,
    device: torch.device,
    pairs: int,
    processes: int,
    steps_per_epoch: int,
    total_steps: int,
    validation: Split,
) -> list[str]:
    """The lines at the top of a log: with what, on what, and where to a run trains.

    Args:
        config: of the run.
        annotations: its splits.
        model: the whole of it.
        device: of this process.
        pairs: of a step, over all processes.
        processes: how many there are.
        steps_per_epoch: pairs of the training split over `pairs`.
        total_steps: of the whole run.
        validation: the split that each epoch is evaluated on.

    Returns:
        One fact, or a few that belong together, a line.
    """
    # A parameter that is shared by two layers is one.
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in model.parameters() if not value.requires_grad)
    of_checkout = commit()
    python = ".".join(map(str, sys.version_info[:3]))

    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {counted(threads, 'thread')}"
    precision = "float32" if config.train.precision == "no" else f"mixed precision {config.train.precision}"
    data = f"features in {config.from_features}" if config.from_features is not None else f"{config.data.root}"
    text = "question" if config.answers_questions else "caption"
    splits = [
        f"{what} {counted(len(split.clips), 'clip')} with {counted(len(split.captions), text)}"
        for what, split in (
            ("training", annotations.train),
            ("validation", annotations.val),
            ("test", annotations.test),
        )
    ]
    emcl = "off" if config.emcl.mode == "off" else f"{config.emcl.mode}, {config.emcl.num_bases} bases"
    lines = [
        f"versions: emcl {installed_version('emcl')}{f' at commit {of_checkout}' if of_checkout else ''}, torch "
        f"{torch.__version__}, python {python}",
        f"device: {name}; {counted(processes, 'process', 'processes')}; {precision}",
        f"data: {config.recipe} ({config.data.layout}), {data}; {', '.join(splits)}",
        f"model: {_named(config)}, EMCL {emcl}; {trained:,} parameters trained, {frozen:,} frozen",
        f"steps: {total_steps:,} of {counted(pairs, 'pair')}, {steps_per_epoch:,} an epoch; validation on the "
        f"{counted(len(validation.clips), 'clip')} of the {SPLIT_NAMES[validation.name]} split",
        f"folder: {config.out}",
    ]
    return [in_a_line(line) for line in lines]


def _named(config: RunConfig) -> str:
    """The model in a few words."""
    if config.model.system != "clip":
        system = SYSTEMS[config.model.system]
        return f"{system.label} ({system.about})"
    head = "classifier of answers" if config.answers_questions else f"head {config.model.head}"
    loss = ", loss sigmoid" if config.train.loss == "sigmoid" else ""
    return f"{config.model.clip}, temporal {config.model.temporal}, {head}{loss}"


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number and what is counted: "1 clip", "2 clips"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process has had so far: of the GPU if it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere else


def number_of(norm: Tensor | None) -> float | None:
    """The norm of a step's gradients as a number, of sharded ones too."""
    if norm is None:
        return None
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def scalars(record: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by the names that a tracker shows: train/loss, for example."""
    kind = record["kind"]
    numbers: dict[str, float] = {}

    for name, value in record.items():
        if isinstance(value, Mapping):
            # "@" is no character of a name in some trackers.
            numbers |= {f"{kind}/{name}/{metric.replace('@', '')}": float(number) for metric, number in value.items()}
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("step", "epoch"):
            numbers[f"{kind}/{name}"] = float(value)

    return numbers
