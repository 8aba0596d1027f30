import os
import subprocess
import sys

import pytest

from seedbed.core.durable import locked, whole_folder, write_whole
from seedbed.core.errors import RefusedError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    write_whole(file, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_failed_halfway_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="stop"), whole_folder(tmp_path / "step-1") as temporary:
        (temporary / "half").write_text("x")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_held_folder_is_refused_and_a_stale_lock_is_taken_over(tmp_path):
    with locked(tmp_path), pytest.raises(RefusedError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text(f"{os.getppid()}")  # left behind by a process that was killed
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(str(os.getpid()))
    assert not (tmp_path / ".lock").exists()


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    code = (
        "import sys, pathlib\nfrom seedbed.core.durable import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(RefusedError, match=f"process {other.pid}"), locked(tmp_path):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path):
        pass
