"""Train video question answering: cross entropy of the answers, and half the contrastive loss in which EMCL acts."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from emcl_train.config import PlaceConfig, RunConfig, check_config
from emcl_train.data.loader import prepare
from emcl_train.data.question_batches import question_loader
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.answering import answered_split, evaluate_answers, labels_and_names, measured
from emcl_train.models import look_at_clip, on_device
from emcl_train.models.question_answering import AnswerModel, answer_loss, build_answer_model
from emcl_train.recipes import SMOKE_TEST, is_smoke_test
from emcl_train.report.answers import render_answers, write_answers_report
from emcl_train.runs import contents
from emcl_train.runs import files as run_files
from emcl_train.runs.clip_config import keep_clip_config
from emcl_train.runs.finished import mark_finished
from emcl_train.runs.lock import writing
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.terminal import escaped, warn
from emcl_train.training.divergence import Watch
from emcl_train.training.losses import symmetric_info_nce
from emcl_train.training.optim import build_optimizer, freeze_inputs, gradient_limit, rate_share, set_learning_rate
from emcl_train.training.start import environment, open_run_folder, seed_everything, start_processes


def train_answers(config: RunConfig, console: Console) -> Path:
    """Train, keep the epoch with the most right answers, answer the test split, and write the report.

    The epoch is chosen on the validation split. The release chooses on the test split: `train.select_on_test`.

    Returns:
        The run folder.

    Raises:
        UserError: for everything that the user can put right.
    """
    check_config(config)
    look_at_clip(config.model)
    accelerator = start_processes(config)
    if accelerator.num_processes > 1:
        raise UserError(f"question answering trains in one process, got {accelerator.num_processes}; start it alone")

    with writing(config.out, deep=True):
        open_run_folder(config)
        if is_smoke_test(config):
            warn(SMOKE_TEST, console)
        seed_everything(config.train.seed, accelerator.device)
        try:
            epochs, steps = fit(config, accelerator, console)
            results, folder = evaluate_answers(config.out, place=PlaceConfig.of(config.data), ends_training=True)
            page = write_answers_report(folder)
            mark_finished(config.out, epochs=epochs, steps=steps)
        except OSError as error:
            run_files.raise_if_disk_full(error, config.out)
            raise
    console.print(render_answers(results))
    console.print(f"report: {escaped(page)}", soft_wrap=True, highlight=False)
    return config.out


def fit(config: RunConfig, accelerator: Accelerator, console: Console) -> tuple[int, int]:
    """All epochs, each followed by a validation. Returns how many epochs and steps there were."""
    out = config.out
    train = config.train

    # The data and the model.
    annotations = prepare(config)
    asked = answered_split(annotations, "train", config)
    selects = answered_split(annotations, "test" if train.select_on_test else "val", config)
    batch_size = min(train.batch_size, len(asked.labels))
    per_epoch = len(asked.labels) // batch_size
    total = train.epochs * per_epoch if train.max_steps is None else min(train.max_steps, train.epochs * per_epoch)
    epochs = math.ceil(total / per_epoch)

    tokenizer = load_tokenizer(config, out)
    _, names = labels_and_names(config)
    model = build_answer_model(config, tokenizer, len(names))
    freeze_inputs(model, train.frozen)
    keep_clip_config(out, dict(model.towers.clip.config.to_dict()))
    record = environment(config, accelerator.device) | {"processes": 1, "pairs_per_step": batch_size}
    run_files.write_json_atomic(out / contents.ENVIRONMENT, record)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config))

    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        yield from question_loader(
            asked.split, asked.labels.tolist(), tokenizer, config.data, batch_size, seed=train.seed, epoch=epoch
        )

    watch = Watch(config)
    step = 0
    best = -math.inf
    for epoch in range(1, epochs + 1):
        wrapped.train()
        loss = math.nan
        for batch in batches(epoch - 1):
            if step == total:
                break
            start = time.perf_counter()
            share = rate_share(train, step, total_steps=total, steps_per_epoch=per_epoch)
            set_learning_rate(optimizer, share)
            loss = training_step(model, wrapped, optimizer, accelerator, on_device(batch, accelerator.device), config)
            step += 1
            if not math.isfinite(loss):
                raise watch.diverged(f"the loss is {loss}", step=step, epoch=epoch, damaged=False)
            watch.loss_was(step, loss)
            seconds = round(time.perf_counter() - start, 4)
            line = {"kind": "train", "step": step, "epoch": epoch, "loss": loss, "lr": share * train.lr}
            run_files.append_line(out / contents.METRICS, line | {"seconds": seconds})

        figures, _ = measured(model, selects, tokenizer, config, accelerator.device)
        line = {"kind": "validation", "step": step, "epoch": epoch, "split": selects.split.name}
        run_files.append_line(out / contents.METRICS, line | {"questions": figures.kept, "accuracies": figures.shares})
        better = figures.top1_of_kept > best  # the first of equals stays
        if better:
            best = figures.top1_of_kept
            save_tensors_atomic(out / contents.WEIGHTS, model.state_dict(), epoch=epoch)
        console.print(
            f"epoch {epoch:>3}/{epochs}  loss {loss:.3f}  {selects.split.name}: {figures.top1_of_kept:.1f} % of "
            f"{figures.kept} kept questions right{'  best so far' if better else ''}",
            highlight=False,
            soft_wrap=True,
        )
    return epochs, step


def training_step(
    model: AnswerModel,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: dict[str, Tensor],
    config: RunConfig,
) -> float:
    """One update of the weights. Returns the loss."""
    labels = batch.pop("label")
    answers = wrapped(batch)
    similarity = model.contrast(answers, emcl=config.emcl.mode == "train")
    loss = answer_loss(answers, labels, similarity, symmetric_info_nce)
    accelerator.backward(loss)

    accelerator.clip_grad_norm_(wrapped.parameters(), gradient_limit(config.train))
    optimizer.step()
    optimizer.zero_grad()
    model.hold_logit_scale()
    return loss.item()
