"""What a run's record says of its start: the command, the time, the processor, the commit."""

import re
import subprocess

from emcl_train.runs.code import command_line, commit, now, processor


def test_the_command_is_what_was_typed_without_the_folder_of_the_program():
    typed = ["/opt/somewhere/bin/emcl-train", "train", "shapes", "--out", "runs/my run"]
    assert command_line(typed) == "emcl-train train shapes --out 'runs/my run'"
    assert command_line(["/opt/lib/emcl_train/__main__.py", "train", "shapes"]) == "python -m emcl_train train shapes"
    assert command_line(["", "train"]) == "python train"


def test_time_and_processor_are_there():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", now())
    assert processor()


def test_the_commit_is_that_of_the_checkout_and_says_if_files_were_changed(tmp_path):
    assert commit(tmp_path) is None

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert commit(tmp_path) is None  # nothing has been committed
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    assert commit(tmp_path) == git("rev-parse", "--short=10", "HEAD")
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == git("rev-parse", "--short=10", "HEAD") + "+"
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None  # a repository around it is somebody else's
