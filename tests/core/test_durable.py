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
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (tmp_path / ".lock").write_text(f"{dead.stdout.strip()} 123")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(str(os.getpid()))
    assert not (tmp_path / ".lock").exists()


def test_a_reused_process_number_does_not_hold_a_lock(tmp_path):
    (tmp_path / ".lock").write_text(f"{os.getpid()} 1")  # this process, but begun at another time
    with locked(tmp_path):
        pass
