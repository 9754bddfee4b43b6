"""A training that is stopped between two steps, as a kill would stop it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from emcl_train.training import trainer


class Stopped(Exception):
    """In place of a kill."""


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """What trains inside is stopped after so many steps, and the program goes on behind the block."""
    step = trainer.Run.training_step

    def until_then(run, batch):
        if run.step == steps:
            raise Stopped
        return step(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Run, "training_step", until_then)
        with pytest.raises(Stopped):
            yield
