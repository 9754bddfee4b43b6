"""A process that has imported everything, and forks a child for each command: hundreds of commands a minute.

`Servers` is what the parts of the harness use. Run as a script, this file is the server itself: it reads requests as
JSON lines, and answers each with how its command ended. A child comes out of the loop, runs `emcl_train.cli.main` and
ends as any interpreter ends.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "faults"
LIMIT = 600.0
"""Seconds after which a command counts as hanging: many, since machines are shared."""

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Stop:
    """What happens to a command at its n-th change of a file below its folder; see stopper.c."""

    action: str = "watch"
    """ "watch", "kill-before", "kill-torn", "kill-after", "signal", "fail-once" or "fail-on"."""
    at: int = 0
    value: int = 0
    """The signal, or the errno."""

    ACTIONS = ("watch", "kill-before", "kill-torn", "kill-after", "signal", "fail-once", "fail-on")


@dataclass
class Outcome:
    """How a command ended."""

    arguments: list[str]
    code: int
    """Its exit code; the signal that ended it, negative; -1000 where it hung and was ended by the harness."""
    out: str
    err: str
    seconds: float
    events: int
    """Changes of files below its folder."""
    log: list[list[str]]
    """Each of these, and of what `reached_out` gives: number, what, path, other path."""
    cpu: float
    peak: int
    """Memory in bytes, beyond what the server had itself."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def reached_out(self) -> list[list[str]]:
        """Changes of files elsewhere, connections, and programs that were started, but for this very interpreter."""
        outside = [line[1:] for line in self.log if line[0] == "-1"]
        return [line for line in outside if line[:2] != ["exec", sys.executable]]

    @property
    def lines(self) -> list[str]:
        """What it said on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]


@dataclass
class Request:
    """One command, as the server is asked for it."""

    arguments: list[str]
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    stdin: str = os.devnull
    stdout: str | None = None
    """A file in place of the one that is read back; "head": a pipe whose reader leaves after a line; "closed"."""
    limits: dict[str, int] = field(default_factory=dict)
    """Of `resource`, by name: FSIZE, NOFILE; MORE: of the address space, beyond what is in use."""
    stop: list[int] = field(default_factory=lambda: [0, 0, 0])
    timers: list[list[float]] = field(default_factory=list)
    """[seconds, signal] each."""
    seconds: float = LIMIT
    disk: dict[str, str] = field(default_factory=dict)
    """A tmpfs in a mount namespace of the command alone: "folder", "options"; "read_only"; "collect": the folder to
    copy what lies on it to when the command has ended."""
    store: str = ""
    plots: bool = False
    """Whether a report gets its plots, which take longer than all else that a command does here."""
    program: str = ""
    """Python code to run in place of a command, with `arguments` as its own."""


class Server:
    """One such process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="emcl-server-"))
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library()),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # as the command line sets it, before transformers is imported
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        stop: Stop | None = None,
        **asked: Any,
    ) -> Outcome:
        """Run one command in a folder, below which its changes are counted. The fields of `Request` are known here."""
        stop = stop or Stop()
        request = Request(list(map(str, arguments)), str(folder), **asked)
        request.stop = [Stop.ACTIONS.index(stop.action), stop.at, stop.value]
        for name in ("out", "err", "log"):
            (self.folder / name).write_bytes(b"")

        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(vars(request)) + "\n")
        self.process.stdin.flush()
        answer = self._answer()

        log = [line.split("\t") for line in self._read("log").splitlines()]
        return Outcome(request.arguments, out=self._read("out"), err=self._read("err"), log=log, **answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of commands ended with {self.process.wait()}")
        return json.loads(line)

    def _read(self, name: str) -> str:
        return (self.folder / name).read_bytes().decode("utf-8", "backslashreplace")


class Servers:
    """As many as there are cores to work on."""

    def __init__(self, count: int) -> None:
        library()
        with ThreadPoolExecutor(count) as pool:
            self.all = list(pool.map(lambda _: Server(), range(count)))
        self.one = self.all[0]

    def close(self) -> None:
        for server in self.all:
            server.close()

    def map(self, work: Callable[[Server, Item], Found], items: Iterable[Item]) -> list[Found]:
        """`work(server, item)` of all items, in their order; each server has one at a time."""
        free: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for server in self.all:
            free.put(server)

        def one(item: Item) -> Found:
            server = free.get()
            try:
                return work(server, item)
            finally:
                free.put(server)

        with ThreadPoolExecutor(len(self.all)) as pool:
            return list(pool.map(one, items))


_building = threading.Lock()


def library() -> Path:
    """stopper.c, compiled once for each of its versions."""
    source = Path(__file__).with_name("stopper.c")
    path = BUILD / "stopper.so"
    with _building:
        if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.so")
            subprocess.run(
                [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", partial, source, "-ldl"], check=True
            )
            os.replace(partial, path)
    return path


# From here on: the server itself.

IMPORTED = (
    "torch", "numpy", "av", "transformers", "tokenizers", "accelerate", "safetensors.torch", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "jinja2", "pyarrow.parquet", "rich.console", "tyro",
    "emcl_train.cli", "emcl_train.training.seeds", "emcl_train.evaluation.run", "emcl_train.report",
    "emcl_train.tools.compress", "emcl_train.tools.doctor", "emcl_train.tools.embed", "emcl_train.tools.export",
    "emcl_train.tools.refine", "emcl_train.data.shapes", "torch.utils.tensorboard",
)  # fmt: skip


def serve(folder: Path) -> Request:
    """Answer requests until there are no more. Returns in a child, with what it is to do."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)

    import torch

    torch.set_num_threads(1)
    gc.disable()  # a collection in every child would copy the pages of all that was imported

    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    stopper = ctypes.CDLL(str(library()))
    own = _memory("VmRSS")

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer("ready")
    while line := requests.readline():
        request = Request(**json.loads(line))
        start = time.monotonic()
        pipe = os.pipe() if request.stdout == "head" else None
        child = os.fork()
        if child == 0:
            _become(request, folder, stopper, pipe)
            return request

        reader = None
        if pipe is not None:
            os.close(pipe[1])
            reader = threading.Thread(target=_read_one_line, args=(pipe[0],))
            reader.start()
        status, usage, hung = _wait(child, request)
        code = -1000 if hung else os.waitstatus_to_exitcode(status)
        if request.disk and code == 0:
            code = int((folder / "code").read_text())
        if reader is not None:
            reader.join()
        answer(
            {
                "code": code,
                "seconds": time.monotonic() - start,
                "events": stopper.fault_count(),
                "cpu": usage.ru_utime + usage.ru_stime,
                "peak": max(0, usage.ru_maxrss - own) * 1024,
            }
        )
    os._exit(0)


def _read_one_line(descriptor: int) -> None:
    while os.read(descriptor, 1) not in (b"\n", b""):
        pass
    os.close(descriptor)


def _wait(child: int, request: Request) -> tuple[int, Any, bool]:
    """Wait for a child, and send it what it is to be sent."""
    handle = os.pidfd_open(child)
    begin = time.monotonic()
    pending = sorted([float(at), int(number)] for at, number in request.timers)
    pending.append([request.seconds, -1])
    hung = False
    for at, number in pending:
        wait = max(0.0, begin + at - time.monotonic())
        if select.select([handle], [], [], wait)[0]:
            break
        if number == -1:
            hung = True
            number = signal.SIGKILL
        try:
            os.killpg(child, int(number))
        except ProcessLookupError:
            break
        if number == signal.SIGKILL:
            break
    _, status, usage = os.wait4(child, 0)
    os.close(handle)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # workers that it left
    return status, usage, hung


def _become(request: Request, folder: Path, stopper: ctypes.CDLL, pipe: tuple[int, int] | None) -> None:
    """Put a child into the place of a program that was just started for a command."""
    import resource

    gc.freeze()
    gc.enable()
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    os.environ.update(request.environment)
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None  # another one may be remembered
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir()
    os.chdir(request.folder)

    out = str(folder / "out") if request.stdout in (None, "head", "closed") else str(request.stdout)
    os.dup2(os.open(request.stdin, os.O_RDONLY), 0)
    os.dup2(os.open(out, os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(os.open(str(folder / "err"), os.O_WRONLY | os.O_APPEND), 2)
    if pipe is not None:
        os.dup2(pipe[1], 1)
        os.close(pipe[0])
        os.close(pipe[1])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, buffering=1)  # type: ignore[misc]  # noqa: SIM115
    if request.stdout == "closed":
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # type: ignore[assignment,misc]

    if request.disk:
        _on_a_small_disk(libc, folder, **request.disk)
        os.chdir(request.folder)
    for name, value in request.limits.items():
        if name == "MORE":
            name, value = "AS", value + 1024 * _memory("VmSize")
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    action, at, value = request.stop
    stopper.fault_arm(
        request.folder.encode(),
        ctypes.c_long(at),
        action,
        value,
        str(folder / "log").encode(),
        request.store.encode(),
        os.environ["TMPDIR"].encode(),
    )


NEW_NAMESPACE = 0x00020000
PRIVATE, READ_ONLY, REMOUNT = 1 << 18 | 1 << 14, 1, 1 << 5


def _on_a_small_disk(
    libc: ctypes.CDLL, answers: Path, *, folder: str, options: str, collect: str, read_only: str = ""
) -> None:
    """A disk of its own, with what was in the folder. Returns in another child; the first one keeps what is left."""

    def done(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "no disk could be mounted")

    before = f"{collect}.before"
    shutil.copytree(folder, before, symlinks=True)
    done(libc.unshare(NEW_NAMESPACE))
    done(libc.mount(b"none", b"/", None, PRIVATE, None))
    done(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options.encode()))
    shutil.copytree(before, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(before)
    if read_only:
        done(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", REMOUNT | READ_ONLY, options.encode()))

    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    shutil.copytree(folder, collect, symlinks=True)
    (answers / "code").write_text(str(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def _command(request: Request) -> int:
    if request.program:
        sys.argv = ["program", *request.arguments]
        exec(compile(request.program, "program", "exec"), {"__name__": "__main__"})
        return 0

    from emcl_train import cli

    if not request.plots:
        _draw_nothing()
    sys.argv = ["emcl-train", *request.arguments]
    cli.program()


def _draw_nothing() -> None:
    """Put a sentence, and a picture of nothing, in the place of every plot."""
    from markupsafe import Markup

    from emcl_train.report import plots
    from emcl_train.report.drawing import Plot
    from emcl_train.report.pages import Drawing

    nothing = Drawing(Markup("<svg></svg>"), "a sentence")
    for name in ("training", "steps", "similarities"):
        setattr(plots, name, lambda run: [nothing])
    plots.modalities = lambda run: ([Plot(nothing.svg, {})], "a sentence")


def _end(request: Request) -> NoReturn:
    """What an interpreter does from `sys.exit(main())` on, but for freeing all that was imported, which is slow."""
    number = 0
    try:
        number = _command(request)
    except SystemExit as error:
        number = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        number = 1

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            if stream is sys.stdout:
                print("Exception ignored on flushing sys.stdout", file=sys.stderr)
                number = 120
    os._exit(number & 0xFF)


if __name__ == "__main__":
    _end(serve(Path(sys.argv[1])))
