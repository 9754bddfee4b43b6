"""Train a run from its configuration to its report, from the start or from the last saved state."""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console, RenderableType
from torch import Tensor, nn
from torch.utils.data import DataLoader

from emcl_train.config import PlaceConfig, RunConfig, check_config, differing_settings
from emcl_train.data.annotations import Annotations, Split
from emcl_train.data.experts.prepare import texts_of
from emcl_train.data.loader import prepare, steps_per_epoch, training_loader
from emcl_train.data.provenance import changes
from emcl_train.data.tokens import encoded_captions
from emcl_train.errors import NotFinite, UserError, is_about_numbers
from emcl_train.evaluation.encode import embed_split
from emcl_train.evaluation.metrics import chance
from emcl_train.evaluation.on_features import model_on_features
from emcl_train.evaluation.provenance import clip_config_of, frames_of, require_features_of
from emcl_train.evaluation.run import evaluate, evaluate_run, evaluate_together
from emcl_train.models import (
    PairModel,
    RetrievalModel,
    TextFeatures,
    TowersModel,
    TrainedModel,
    VideoFeatures,
    build_pair_model,
    look_ahead,
    on_device,
)
from emcl_train.models.experts.build import keep_bert_config
from emcl_train.models.towers.adapters import merged
from emcl_train.processes import agreed, gather_objects, gather_rows, max_over_processes, sum_over_processes
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.report import render_table, write_report
from emcl_train.runs import contents
from emcl_train.runs import files as run_files
from emcl_train.runs import state as checkpoint
from emcl_train.runs.checksums import narrow
from emcl_train.runs.clip_config import keep_clip_config
from emcl_train.runs.code import OF_THE_START
from emcl_train.runs.evaluations import set_aside
from emcl_train.runs.finished import BEGUN, ENDS_WITH, is_finished, mark_finished
from emcl_train.runs.lock import writing
from emcl_train.runs.records import selecting_score
from emcl_train.runs.state import TrainingState
from emcl_train.terminal import console_of, escaped, warn
from emcl_train.training.chunks import ChunkedFeatures
from emcl_train.training.compiling import without_compiling
from emcl_train.training.divergence import Diverged, Watch, all_finite, moments_of
from emcl_train.training.going_on import Steps, pairs_per_step, require_same_sharding, require_same_steps
from emcl_train.training.losses import channel_decorrelation, loss_of
from emcl_train.training.memory import require_what_saves_memory, save_memory
from emcl_train.training.optim import (
    build_optimizer,
    clip_lr_factor,
    freeze_inputs,
    freeze_towers,
    gradient_limit,
    rate_share,
    set_learning_rate,
)
from emcl_train.training.progress import Progress, Step, header, memory_bytes, number_of, scalars
from emcl_train.training.selection import Score, Selection
from emcl_train.training.sharding import (
    is_sharded,
    optimizer_state_of,
    put_optimizer_state_into,
    put_weights_into,
    weights_of,
    widen_scalars,
)
from emcl_train.training.start import TRACKER, environment, open_run_folder, seed_everything, start_processes
from emcl_train.weights.settling import settled


def train(config: RunConfig, console: Console | None = None, *, settle: bool = True) -> Path:
    """Train, select the epoch on the validation split, evaluate it on the test split, and write the report.

    Args:
        config: all settings.
        console: where progress is shown; None: the terminal.
        settle: put in what the model brings along, where the settings are as the recipe has them; False where the
            caller has done so (`weights/settling.py`).

    Returns:
        The run folder.

    Raises:
        UserError: for everything that the user can put right.
    """
    console = console_of(console)
    check_config(config)  # the command has asked before torch was imported; other callers come in here
    config = settled(config) if settle else config
    asked = config
    config = contents.as_started(asked)

    # What is wrong with the weights to start from, or does not fit them, is said before anything that takes time.
    if config.from_features is None:
        look_ahead(config)

    # One process, or those that torchrun started. The first one writes the run folder, and keeps others out of it.
    accelerator = start_processes(config)
    require_what_saves_memory(config.train, accelerator)
    with writing(config.out, deep=True) if accelerator.is_main_process else nullcontext():
        _train(config, asked, accelerator, console)
    return config.out


def _train(config: RunConfig, asked: RunConfig, accelerator: Accelerator, console: Console) -> None:
    """`train`, in a run folder that nobody else writes to. `asked` has the settings before those of an older run."""
    if accelerator.is_main_process:
        open_run_folder(config)
        if kept := differing_settings(config, asked):
            warn(escaped(f"{config.out} is older than some settings, and keeps its own: {'; '.join(kept)}"), console)
        if is_smoke_test(config):
            warn(SMOKE_TEST, console)
    accelerator.wait_for_everyone()
    seed_everything(config.train.seed, accelerator.device)

    try:
        # All epochs, each followed by a validation.
        run = run_of(config)(config, accelerator, console)
        run.fit()
        for tracker in accelerator.trackers:
            tracker.finish()

        # The selected weights on the test split, and the report.
        if accelerator.is_main_process:
            table, folder = run.evaluate()
            report = write_report(folder)
            mark_finished(config.out, epochs=run.epochs, steps=run.total_steps)
            console.print(table)
            console.print(f"report: {escaped(report)}", soft_wrap=True, highlight=False)
    except OSError as error:
        run_files.raise_if_disk_full(error, config.out)
        raise

    accelerator.wait_for_everyone()


def run_of(config: RunConfig) -> "type[Run]":
    """What trains a configuration."""
    if not config.answers_questions:
        return Run
    from emcl_train.training.answering import AnswerRun  # which is a `Run`

    return AnswerRun


class Run:
    """A training run: its data, its model, and how far it has come.

    It trains retrieval. What other tasks do otherwise are the methods `prepare`, `pairs_per_step`, `new_model`,
    `loader`, `loss`, `measure` and `evaluate`.
    """

    model: TrainedModel
    unit: Literal["clip", "question"] = "clip"
    """What a validation counts."""

    def __init__(self, config: RunConfig, accelerator: Accelerator, console: Console) -> None:
        self.config = config
        self.out = config.out
        self.accelerator = accelerator
        self.processes = accelerator.num_processes
        self.console = console

        # The data. Each process checks a part of the clips; the first one writes what the others read.
        self.annotations: Annotations = self.prepare()

        # The pairs of a step, over all processes. A run goes on with those that it would have had.
        self.batch_size = self.pairs_per_step()
        self.steps = Steps.of(self.annotations.train, self.batch_size, self.processes)
        saved = checkpoint.load_state(self.out) if config.resume else None
        self.was_finished = config.resume and is_finished(self.out)
        if saved is not None:
            require_same_steps(
                self.out, saved.steps, self.steps, batch_size=config.train.batch_size, chunks=config.train.chunks
            )
            require_same_sharding(self.out, saved.optimizer, sharded=is_sharded(accelerator))

        # The model, and the record of what the figures depend on besides the configuration.
        record = self.environment(saved)
        record["steps_per_epoch"] = steps_per_epoch(self.annotations.train, config.data, self.batch_size)
        self.tokenizer = texts_of(config, self.annotations, self.out)
        self.model = self.build_model()
        if accelerator.is_main_process:
            if isinstance(self.model, TowersModel):
                keep_clip_config(self.out, clip_config_of(self.model, config))
            elif isinstance(self.model, PairModel):
                keep_bert_config(self.out, self.model)
            run_files.write_json_atomic(self.out / contents.ENVIRONMENT, record)

        # Sharded weights cannot be evaluated by one process alone: the first one keeps a whole copy for that.
        self.sharded = is_sharded(accelerator)
        self.whole = copy.deepcopy(self.model) if self.sharded and accelerator.is_main_process else self.model
        self.shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        if self.sharded:
            widen_scalars(self.model)

        # `wrapped` is the model that exchanges gradients (or shards) in its forward and backward pass.
        self.wrapped: nn.Module
        self.optimizer: AcceleratedOptimizer
        self.wrapped, self.optimizer = accelerator.prepare(self.model, build_optimizer(self.model, config))

        # How many steps there are.
        self.steps_per_epoch = steps_per_epoch(self.annotations.train, config.data, self.batch_size)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        if config.train.max_steps is not None:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.progress = Progress(
            console,
            shown=accelerator.is_main_process,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            pairs=self.batch_size,
        )

        # How many are done: epochs, batches of the epoch, steps in all; and the best epoch so far.
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.lr = 0.0
        """Of the last step, at its peak among the groups that are not CLIP's."""
        self.selection = Selection.of(
            self.validation, on_test=config.train.select_on_test, keep=config.train.keep, unit=self.unit
        )
        self.watch = Watch(config)
        self.resume(saved)

    def environment(self, saved: TrainingState | None) -> dict[str, object]:
        """What to record. A run that goes on keeps the record of the frames and towers that it was started with.

        Args:
            saved: the state that the run goes on from, if there is one.

        Raises:
            UserError: it was started on features of other towers.
        """
        now = environment(self.config, self.accelerator.device)
        now |= {"processes": self.processes, "pairs_per_step": self.batch_size}
        then = contents.load_environment(self.out) if self.config.resume else {}
        if not then:
            return now

        # A run that a version without marks has finished stays finished until it has one.
        if self.was_finished and ENDS_WITH not in then:
            del now[ENDS_WITH]

        if self.config.from_features is not None:
            require_features_of(self.out, str(now["features"]), self.config.from_features)
        for change in changes(then, now):
            if self.accelerator.is_main_process:
                text = f"warning: {self.out} goes on with other frames: {change}; the record stays"
                warn(escaped(text), self.console)

        # Where the run went on with another number of processes: that before, and that after.
        resumed = then.get("resumed", [])
        if saved is not None and then.get("processes", self.processes) != self.processes:
            resumed = [*resumed, {"step": saved.step, "processes": [then["processes"], self.processes]}]
        if resumed:
            now["resumed"] = resumed
        for name in OF_THE_START:  # of an earlier version, which did not record it
            if name not in then:
                del now[name]
        return now | {name: then[name] for name in (*frames_of(self.config), *OF_THE_START) if name in then}

    def prepare(self) -> Annotations:
        """The data."""
        return prepare(self.config, together=self.processes > 1)

    def build_model(self) -> TrainedModel:
        """The model of the configuration; an experiment may put another layer into it."""
        if self.config.from_features is not None:
            return model_on_features(self.config, self.tokenizer)

        model = self.new_model()
        freeze_inputs(model, self.config.train.frozen)
        if clip_lr_factor(self.config) == 0:
            freeze_towers(model)
        if isinstance(model, TowersModel) and (said := save_memory(model.towers, self.config.train)):
            self.print(said)
        return model

    def new_model(self) -> TrainedModel:
        """The model with all that it learns, from videos."""
        return build_pair_model(self.config, self.tokenizer)

    def pairs_per_step(self) -> int:
        """`train.batch_size`, or all training clips if there are fewer, which is said.

        Raises:
            UserError: a batch would leave a process without a pair, or a pair without another one.
        """
        train = self.config.train
        clips = len(self.annotations.train.clips)
        return pairs_per_step(train.batch_size, train.chunks, clips, self.processes, self.print)

    @property
    def validation(self) -> Split:
        """The split that every epoch is evaluated on."""
        return self.annotations.test if self.config.train.select_on_test else self.annotations.val

    def loader(self, epoch: int, start_batch: int = 0) -> DataLoader:
        """This process's part of the batches of an epoch, from one of them on."""
        return training_loader(
            self.annotations.train,
            self.tokenizer,
            self.config.data,
            batch_size=self.batch_size,
            seed=self.config.train.seed,
            epoch=epoch,
            start_batch=start_batch,
            rank=self.accelerator.process_index,
            world=self.processes,
            pairs=self.config.train.batches,
        )

    def fit(self) -> None:
        """The rest of the steps, with a validation after epochs, see `validates`, and at the end."""
        # Of several processes each tokenizes a part of the captions, and gives it to the others.
        if self.processes > 1 and self.config.from_features is None and self.step < self.total_steps:
            captions = encoded_captions(self.tokenizer, self.annotations.train)
            captions.encode_together(self.accelerator.process_index, self.processes, gather_objects)

        # A kill before the first state is known by this from a state that was lost.
        if self.step == 0 and self.accelerator.is_main_process:
            run_files.write_json_atomic(self.out / BEGUN, {"steps": self.total_steps})

        if self.step < self.total_steps and self.accelerator.is_main_process:
            self.progress.header(self.header())
            if (warning := self.selection.warning()) is not None:
                warn(escaped(warning), self.console)
        if self.total_steps == 0 and self.selection.best_epoch < 0:
            self.keep_start()
        while self.step < self.total_steps:
            loss = self.fit_epoch()
            if not self.validates():
                self.epoch += 1
                self.batch = 0
                continue
            self.progress.pace.begin()
            kept = agreed(partial(self.validate, self.epoch + 1))
            validated = f"epoch {self.epoch + 1:>3}/{self.epochs}  loss {loss:.3f}  {kept}"
            self.progress.pace.validation_done()

            # Saved before anything is printed.
            self.epoch += 1
            self.batch = 0
            self.save()
            self.save_selected()
            self.print(validated)

    def validates(self) -> bool:
        """Whether the epoch whose last step was just done is followed by a validation."""
        every = self.config.train.validate_every
        if every is None or self.step >= self.total_steps:
            return True
        return self.step // every > (self.step - self.steps_per_epoch) // every

    def keep_start(self) -> None:
        """Without any step, the weights of the run are those that it starts from: such as a checkpoint's."""
        kept = agreed(partial(self.validate, 0))
        self.save()
        self.save_selected()
        self.print(f"no training  {kept}")

    def fit_epoch(self) -> float:
        """The batches of this epoch that are still to be done. Returns their mean loss."""
        self.wrapped.train()
        if clip_lr_factor(self.config) == 0 and isinstance(self.model, TowersModel):
            self.model.towers.eval()  # frozen in all respects

        losses: list[float] = []
        with self.progress.epoch(self.epoch + 1, self.batch) as follow:
            for batch in self.loader(self.epoch, start_batch=self.batch):
                if self.step >= self.total_steps:
                    break

                losses.append(self.training_step(batch))
                follow(Step(self.step, self.batch, losses[-1], self.lr))

                # The last batch of an epoch is saved after its validation.
                if self.step % self.config.train.save_every == 0 and self.batch < self.steps_per_epoch:
                    self.save()
                    self.progress.pace.begin()

        return math.fsum(losses) / max(1, len(losses))

    def training_step(self, batch: dict[str, Tensor]) -> float:
        """One update of the weights. Returns the loss."""
        start = time.perf_counter()
        config = self.config.train

        # The rate of this step.
        share = rate_share(config, self.step, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        set_learning_rate(self.optimizer, share)
        self.lr = share * config.lr

        # Encode. In chunks, only one chunk's activations live at a time; its backward runs the towers again.
        batch = on_device(batch, self.accelerator.device)
        chunked = None
        if config.chunks > 1:
            chunked = ChunkedFeatures(self.wrapped, batch, config.chunks)
        features: Any = self.wrapped(batch) if chunked is None else chunked.features

        # Each process compares its own texts with the videos of all, so the loss is that of the whole batch. The
        # gradient is exchanged between processes.
        try:
            loss = self.loss(features, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise self.diverged(f"the loss is {value}")
            self.accelerator.backward(loss)
            if chunked is not None:
                chunked.backward(partial(self.accelerator.no_sync, self.wrapped))
        except ValueError as error:  # the kernels refuse what NaN would come of
            if not is_about_numbers(error):
                raise
            raise self.diverged("the loss is nan") from error

        # One step of the optimizer. In fp16 it leaves out those whose gradient overflows.
        norm = number_of(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), gradient_limit(config)))
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self.diverged(f"the norm of the gradient is {norm}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.hold_logit_scale()

        self.step += 1
        self.batch += 1
        self.watch.loss_was(self.step, value)
        self.log(
            kind="train",
            step=self.step,
            epoch=self.epoch + 1,
            loss=value,
            lr=self.lr,
            logit_scale=features.logit_scale.item(),
            grad_norm=norm if norm is not None and math.isfinite(norm) else None,
            seconds=round(time.perf_counter() - start, 4),
            clips_per_second=round(self.batch_size / max(self.progress.pace.step_done(), 1e-6), 2),
            memory_bytes=memory_bytes(self.accelerator.device),
        )
        return value

    def diverged(self, what: str) -> Diverged:
        """The error for numbers that are none any more, at the step that is being done."""
        return self.watch.diverged(what, step=self.step + 1, epoch=self.epoch + 1, damaged=False)

    def require_finite(self) -> None:
        """Refuse to save weights, or moments of the optimizer, that have become useless.

        Raises:
            Diverged: in each process.
        """
        buffers = [*self.model.parameters(), *self.model.buffers()]
        damaged = not all_finite([*buffers, *moments_of(self.optimizer.optimizer)])
        if self.sharded:  # each process has a part; without shards all have the same
            damaged = bool(max_over_processes(torch.tensor(float(damaged), device=self.accelerator.device)).item())
        if damaged:
            epoch = self.epoch + bool(self.batch)  # after the last step of an epoch it has been counted
            raise self.watch.diverged("weights are not finite", step=self.step, epoch=epoch)

    def loss(self, features: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss over the pairs of all processes, from this process's own: its texts meet the videos of all.

        Args:
            features: of the forward pass; here `BatchFeatures`.
            batch: that they are of.
        """
        assert isinstance(self.model, PairModel)
        config = self.config.train
        text = features.text
        video = features.video

        similarities = self.model.similarities(
            text,
            video.map(gather_rows),
            emcl=self.config.emcl.mode == "train",
            add_up=sum_over_processes if self.processes > 1 else None,
        )
        of_similarity = loss_of(config)
        of_logits = features.logit_scale, features.logit_bias
        loss = torch.stack([of_similarity(similarity, *of_logits) for similarity in similarities]).mean()

        # DRL's regularisation, which is for its own head.
        head = self.model.head if isinstance(self.model, RetrievalModel) else None
        if config.decorrelation_weight and head is not None and head.decorrelates:
            assert isinstance(text, TextFeatures)
            assert isinstance(video, VideoFeatures)
            decorrelation = channel_decorrelation(
                head.pairs(text, video),
                len(text),
                off_diagonal=config.decorrelation_off_diagonal,
            )
            loss = loss + config.decorrelation_weight * decorrelation

        return loss

    def validate(self, epoch: int) -> str:
        """Score the weights on the split that selects, and keep them if they are the best so far, or the last.

        Args:
            epoch: that has ended, counted from 1; 0: none has.

        Returns:
            What the first process is to print of it.
        """
        # All processes have to take part where weights are sharded; then only the first one evaluates.
        weights = self.weights()
        if not (self.accelerator.is_main_process or self.validates_together):
            return ""
        if self.sharded:
            self.whole.load_state_dict(weights)
            self.whole.to(self.accelerator.device)

        try:
            with without_compiling() if self.config.train.compile_towers else nullcontext():
                score = self.measure()
        except NotFinite as error:
            what = f"numbers of the validation after it are not finite ({str(error).partition(';')[0]})"
            raise self.watch.diverged(what, step=self.step, epoch=epoch) from error
        if score is None:  # in a process that helps the first one
            return ""
        self.log(
            kind="validation",
            step=self.step,
            epoch=epoch,
            split=self.validation.name,
            **score.record,
            selects=self.selection.chooses,
            **({"keeps": "last"} if self.config.train.keep == "last" else {}),
        )

        return self.selection.take(epoch, score, merged(weights, self.config.train))

    @property
    def validates_together(self) -> bool:
        """Whether each process takes a part of a validation: each then has the whole weights."""
        return self.processes > 1 and not self.sharded and isinstance(self.whole, RetrievalModel)

    def measure(self) -> Score | None:
        """What the whole model does on the split that selects.

        Returns:
            Its score; None in processes that help the first one.

        Raises:
            NotFinite: numbers of it are NaN or infinite.
        """
        assert isinstance(self.whole, PairModel)
        split = self.validation
        measured = (split, self.tokenizer, self.config, self.accelerator.device)
        if self.validates_together:
            assert isinstance(self.whole, RetrievalModel)
            lines = evaluate_together(self.whole, *measured)
        else:
            lines = evaluate(self.whole, embed_split(self.whole, *measured), self.config)
        if lines is None:
            return None
        row = lines[0]

        clips = len(split.clips)
        by = self.config.train.select_by
        record = {"clips": clips, "text_to_video": row.text_to_video, "video_to_text": row.video_to_text}
        if by != "R@1":
            record["selects_by"] = by
        figures = f"R@1: text→video {row.text_to_video['R@1']:.1f}, video→text {row.video_to_text['R@1']:.1f}"
        return Score(selecting_score(row.text_to_video, by), figures, chance(clips)["R@1"], record)

    def evaluate(self) -> tuple[RenderableType, Path]:
        """The selected weights on the test split, in the first process: a table, and the folder of the figures."""
        results, folder = evaluate_run(self.out, place=PlaceConfig.of(self.config.data), ends_training=True)
        return render_table(results), folder

    def weights(self) -> dict[str, Tensor]:
        """The state_dict of the whole model; every process has to ask if weights are sharded."""
        return weights_of(self.wrapped, self.shapes) if self.sharded else self.model.state_dict()

    def save(self) -> None:
        """The full state, so that a killed run goes on from here.

        Raises:
            Diverged: it has no use; the state that there was stays.
        """
        self.require_finite()

        # All processes have to take part where weights are sharded; only the first one writes.
        weights = self.weights()
        if self.sharded:
            optimizer = optimizer_state_of(self.wrapped, self.optimizer.optimizer)
        else:
            optimizer = self.optimizer.state_dict()
        if not self.accelerator.is_main_process:
            return

        scaler = self.accelerator.scaler
        state = TrainingState(
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            best_score=self.selection.best_score,
            best_epoch=self.selection.best_epoch,
            metrics_lines=run_files.count_lines(self.out / contents.METRICS),
            model=weights,
            optimizer=optimizer,
            scaler=scaler.state_dict() if scaler else {},
            random=checkpoint.random_states(),
            steps=asdict(self.steps),
            chooses=self.selection.chooses,
        )
        checkpoint.save_state(self.out, state)
        self.watch.saved_step = self.step
        (self.out / BEGUN).unlink(missing_ok=True)

    def save_selected(self) -> None:
        """The weights of the epoch that was just validated, if they are to be kept.

        After the state, which knows of them: a run that was killed between the two writes them when it goes on. The
        other way round they would be of an epoch that the run, going on from the state before it, has not done.
        """
        selection = self.selection
        if selection.weights is not None:
            checkpoint.save_tensors_atomic(self.out / contents.WEIGHTS, selection.weights, epoch=selection.best_epoch)
            selection.weights = None

    def resume(self, state: TrainingState | None) -> None:
        """Take up the last saved state, if there is one."""
        if not self.config.resume:
            return

        if state is not None and state.step < self.total_steps and (self.out / contents.FINISHED).exists():
            raise UserError(
                f"{self.out} is finished, and its state is of step {state.step} of {self.total_steps}: it is not "
                f"trained again over its own results. Bring back the last state, or choose another --out"
            )

        # Every process has read the state; the first one cuts off what was logged after it. Figures of weights that
        # will change are not the run's own.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if not self.was_finished and (state is None or state.step < self.total_steps):
                set_aside(self.out)
            run_files.keep_lines(self.out / contents.METRICS, state.metrics_lines if state else 0)
            for folder in (self.out, (self.out / contents.STATE).parent):
                narrow(folder)
        if state is None:
            self.print(f"no state had been saved in {self.out} yet: starting from the first step")
            return

        if self.sharded:
            put_weights_into(self.wrapped, state.model)
            put_optimizer_state_into(self.wrapped, self.optimizer.optimizer, state.optimizer)
        else:
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.model.hold_logit_scale()  # earlier versions let it rise, and used 100
        checkpoint.restore_random_states(state.random)

        self.epoch = state.epoch
        self.batch = state.batch
        self.step = state.step
        self.selection.best_score = state.best_score
        self.selection.best_epoch = state.best_epoch
        self.selection.chooses = state.chooses
        self.watch.saved_step = state.step

        # What a killed run had still to do after its last state.
        if self.accelerator.is_main_process:
            (self.out / BEGUN).unlink(missing_ok=True)
            if state.batch == 0 and state.best_epoch == state.epoch and not self.was_finished:
                self.selection.weights = merged(state.model, self.config.train)
                self.save_selected()
        self.print(f"resuming {self.out} after step {self.step} of {self.total_steps}")
        if state.steps and state.steps["processes"] != self.processes:
            self.print(
                f"processes: {self.processes}, {state.steps['processes']} before; each step has the same "
                f"{self.batch_size} pairs"
            )

    def header(self) -> list[str]:
        """What stands at the top of a log file."""
        return header(
            self.config,
            self.annotations,
            self.whole,
            device=self.accelerator.device,
            pairs=self.batch_size,
            processes=self.processes,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            validation=self.validation,
        )

    def print(self, text: str) -> None:
        """A line on the console of the first process."""
        if self.accelerator.is_main_process:
            self.console.print(text, highlight=False, soft_wrap=True)

    def log(self, **values: object) -> None:
        """A line of metrics.jsonl, and its numbers to the tracker."""
        if not self.accelerator.is_main_process:
            return
        run_files.append_line(self.out / contents.METRICS, values)

        tracker = self.config.train.tracker
        if tracker == "none":
            return
        if not self.accelerator.trackers:
            # Not before the first step: a run that ended before it has left nothing behind.
            options = {"tensorboard": {"purge_step": self.step}} if tracker == "tensorboard" else {}
            self.accelerator.init_trackers(TRACKER, init_kwargs=options)
        self.accelerator.log(scalars(values), step=self.step)
