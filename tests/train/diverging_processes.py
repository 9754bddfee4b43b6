"""A run of several processes that diverges in one of them: `torchrun … diverging_processes.py ROOT OUT WHERE`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_run import tiny_run

from emcl_train import cli
from emcl_train.endings import end_with
from emcl_train.evaluation import run as evaluation_run
from emcl_train.models import TextFeatures
from emcl_train.training import trainer


def main(root: Path, out: Path, where: str) -> int:
    """Diverge at the second step, in the captions of the last process or in its part of the validation."""
    encode = trainer.RetrievalModel.forward
    calls = []

    def forward(model, batch):
        features = encode(model, batch)
        calls.append(1)
        if where == "captions" and len(calls) == 2 and dist.get_rank() == dist.get_world_size() - 1:
            text = features.text
            assert isinstance(text, TextFeatures)
            return features._replace(text=replace(text, caption=text.caption * 1e30))
        return features

    trainer.RetrievalModel.forward = forward
    config = tiny_run(root, out, tracker="none", epochs=1)
    if where == "validation":
        real = evaluation_run.similarities_together

        def similarities(model, text, video, config):
            if dist.get_rank() == dist.get_world_size() - 1:
                model.emcl.bases.fill_(torch.nan)
            return real(model, text, video, config)

        evaluation_run.similarities_together = similarities

    cli.dispatch = lambda arguments: trainer.train(config) and 0
    return cli.main([])


if __name__ == "__main__":
    end_with(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
