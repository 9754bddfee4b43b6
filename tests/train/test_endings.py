"""How commands end before their time: one line, what there is, how to go on, and an exit code that says why."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from emcl_train import cli, endings
from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.contents import STATE, save_config

WAITS = """
import signal, sys, time
from emcl_train import cli
from emcl_train.commands.entry import Entry
def wait(arguments):
    cli.say_if_ended(lambda: "half is there; go on")
    print("ready", flush=True)
    time.sleep(60)
# Whoever started the tests may ignore signals, as nohup does, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in sys.argv else signal.SIG_DFL)
cli.COMMANDS["wait"] = Entry("", "", wait)
sys.exit(cli.main(["wait"]))
"""


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", WAITS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated")],
)
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("launcher", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_a_signal_is_one_sentence_of_the_command_by_one_process(number, code, word, rank, launcher):
    with started(**{launcher: rank}) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.send_signal(number)  # as torchrun passes on its own and the terminal's
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == (f"{word}; half is there; go on\n" if rank == "0" else "")


def test_a_signal_that_is_ignored_stays_ignored():
    with started("ignored") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_handlers_of_the_caller_come_back():
    before = [signal.getsignal(number) for number in endings.SIGNALS]
    assert cli.main(["--help"]) == 0
    assert [signal.getsignal(number) for number in endings.SIGNALS] == before


# What each command says.


def ended(*_, **__):
    raise KeyboardInterrupt


def without_memory(*_, **__):
    return torch.empty(1 << 60)


@pytest.fixture
def run(tmp_path):
    save_config(tmp_path / "run", RunConfig())
    (tmp_path / "videos").mkdir()
    return tmp_path / "run"


COMMANDS = {
    "train": (["train", "shapes", "--out", "{out}"], "training.trainer.train", "the same command begins it again"),
    "seeds": (
        ["train", "shapes", "--out", "{out}", "--seeds", "2"],
        "training.seeds.train_seeds",
        "no state of {out} was saved yet; the same command begins it again",
    ),
    "eval": (["eval", "{run}"], "evaluation.run.evaluate_run", "the figures in {run} are as they were"),
    "embed": (["embed", "shapes", "--out", "{out}"], "tools.embed.embed", "{out} appears when it is whole"),
    "embed-run": (["embed", "{run}", "--out", "{out}"], "tools.embed.embed", "{out} appears when it is whole"),
    "export": (
        ["export", "{run}", "{out}", "--layout", "emcl"],
        "tools.export.export_run",
        "{out} appears when it is whole: it is not there",
    ),
    "shapes": (["data", "shapes", "{out}"], "data.shapes.render_shapes", "the clips in {out} are whole"),
    "doctor": (["data", "doctor", "shapes", "{videos}"], "tools.doctor.run_doctor", "nothing in {videos} was changed"),
    "compress": (["data", "compress", "{videos}", "{out}"], "tools.compress.compress", "the copies in {out} are whole"),
    "refine": (["refine", "t.npy", "v.npy", "--out", "{out}"], "tools.refine.refine_files", "the files in {out} are"),
    "report": (["report", "{run}"], "report.report_runs", "each run has its earlier report, or a new one"),
    "verify": (["verify", "{run}"], "tools.verify.verify", "the files in {run} are as they were"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", [ended, without_memory])
def test_every_command_says_what_there_is_and_how_to_go_on(monkeypatch, capsys, run, name, how):
    arguments, function, sentence = COMMANDS[name]
    places = {"run": run, "out": run.parent / "out", "videos": run.parent / "videos"}
    __import__(f"emcl_train.{function.rsplit('.', 1)[0]}")
    monkeypatch.setattr(f"emcl_train.{function}", how)

    code = cli.main([argument.format(**places) for argument in arguments])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence.format(**places) in said
    if how is ended:
        assert code == 130
        assert said.startswith("interrupted; ")
    else:
        assert code == 1
        assert said.startswith("error: there is not enough memory: ")


@pytest.mark.parametrize("seeds", [[], ["--seeds", "2"]])
@pytest.mark.parametrize(
    ("left", "how"), [("config.json", "command begins"), ("metrics.jsonl", "command with --resume")]
)
def test_a_run_without_a_state_begins_again_as_its_folder_allows(monkeypatch, capsys, tmp_path, left, how, seeds):
    def ended_after_that(config, **_):
        folder = config.out / "seed-0" if seeds else config.out
        folder.mkdir(parents=True)
        (folder / left).touch()
        raise KeyboardInterrupt

    name = "seeds.train_seeds" if seeds else "trainer.train"
    __import__(f"emcl_train.training.{name.split('.')[0]}")
    monkeypatch.setattr(f"emcl_train.training.{name}", ended_after_that)
    assert cli.main(["train", "shapes", "--out", str(tmp_path / "out"), *seeds]) == 130
    assert f"out was saved yet; the same {how}" in capsys.readouterr().err


def test_a_run_with_a_state_goes_on(monkeypatch, capsys, tmp_path):
    import emcl_train.training.trainer

    def saved_and_ended(config, **_):
        (config.out / STATE).parent.mkdir(parents=True)
        (config.out / STATE).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(emcl_train.training.trainer, "train", saved_and_ended)
    assert cli.main(["train", "shapes", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == (
        f"interrupted; {tmp_path / 'run'} is saved as of its last state; a training run goes on with "
        f"`emcl-train resume {tmp_path / 'run'}`\n"
    )


# Memory that is not there, as those say it who need it.


def raised(error, cause=None):
    try:
        try:
            raise cause or error
        except BaseException as first:
            if cause is None:
                raise
            raise error from first
    except BaseException as last:
        return last


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                     "tried to allocate 4611686018427387904 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        ImportError("libtorch.so: failed to map segment from shared object: Cannot allocate memory"),
        raised(UserError("x cannot be read; copy it again"), MemoryError()),
        raised(UserError("x cannot be read; copy it again"), RuntimeError("Cannot allocate memory (os error 12)")),
    ],
    ids=str,
)  # fmt: skip
def test_want_of_memory_is_no_damage_and_one_line(capsys, error):
    assert cli.code_of_error(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is not enough memory: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong"), RuntimeError("shapes differ"), UserError("caption 'out of memory' is twice")],
    ids=str,
)
def test_other_errors_are_no_want_of_memory(error):
    assert not endings.is_want_of_memory(error)


def test_trouble_of_the_system_without_a_file_is_one_line(capsys):
    assert cli.code_of_error(OSError(errno.EIO, "Input/output error")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the system says: Input/output error; ")
    assert said.count("\n") == 1


# Outputs that are full, closed, or not read to their end.


@pytest.mark.parametrize(
    ("outputs", "code", "said"),
    [
        (">/dev/full", 1, "error: not all could be printed: No space left on device; print to another place\n"),
        (">&-", 1, "error: not all could be printed: it is closed; print to another place\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("| true", 141, ""),
    ],
)
@pytest.mark.parametrize("arguments", ["--help", "train shapes --help"])
def test_outputs_that_take_nothing_end_with_a_line_and_a_code(outputs, code, said, arguments):
    if "|" in outputs:
        outputs = "; } | true; exit ${PIPESTATUS[0]}"
        script = f'{{ sleep 1; "{sys.executable}" -m emcl_train {arguments} {outputs}'
    else:
        script = f'"{sys.executable}" -m emcl_train {arguments} {outputs}'
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (code, said)


def test_closed_streams_give_their_numbers_to_nothing_that_is_written(tmp_path):
    """Else the first file that a command opens is what a library prints into."""
    program = (
        "import os, sys; from emcl_train import endings; endings.open_missing_streams()\n"
        "file = open(sys.argv[1], 'w'); os.write(1, b'noise'); file.write('content'); file.close()"
    )
    script = f'"{sys.executable}" -c "{program}" "{tmp_path / "file"}" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", script], check=True)
    assert (tmp_path / "file").read_text() == "content"


def test_a_signal_waits_for_the_end_of_a_block_that_holds_it_back():
    steps = []
    with pytest.raises(endings.Ended), endings.signals_as_exceptions():  # noqa: PT012
        with endings.held_back():
            with endings.held_back():
                os.kill(os.getpid(), signal.SIGTERM)
            steps.append("in the outer block")
        steps.append("behind it")
    assert steps == ["in the outer block"]
    assert endings.received() == signal.SIGTERM


PROGRAM = """
import os, signal, sys
from emcl_train import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main = lambda: CODE
import threading
shutdown = threading._shutdown
threading._shutdown = lambda: (os.kill(os.getpid(), signal.NAME), shutdown())
cli.program()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("code", [0, 1])
def test_a_signal_behind_the_end_changes_no_exit_code(name, code):
    program = PROGRAM.replace("CODE", str(code)).replace("NAME", name)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_signal_when_the_work_is_done_changes_no_exit_code(monkeypatch, capsys):
    after = cli.code_after_printing

    def and_a_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return after(*arguments)

    monkeypatch.setattr(cli, "code_after_printing", and_a_signal)
    assert cli.main([]) == 2
    assert "Ended" not in capsys.readouterr().err
