import os
from dataclasses import dataclass

import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.registry import ALLOW_LOCAL_CODE, Registry

ROOM = Registry("views", {"next_token": "seedbed.views.next_token:NextToken"})
OPTIMIZERS = Registry("optimizers", {"adamw": "seedbed.optimizers.adamw:AdamW"})


@dataclass(frozen=True, kw_only=True)
class Sized:
    seq_len: int
    other: int = 1


def test_an_unknown_part_gets_the_nearest_name():
    with pytest.raises(
        ConfigError, match="streams.text.views.0.kind: views has no part 'next_tokn'; did you mean 'next_token'"
    ):
        ROOM.build("next_tokn", path="streams.text.views.0")


def test_an_unknown_setting_gets_its_path_and_the_nearest_name():
    with pytest.raises(ConfigError, match=r"stages.text.optimizer.lerning_rate: unknown setting; did you mean 'learning_rate'"):
        OPTIMIZERS.build({"kind": "adamw", "lerning_rate": 1e-3}, path="stages.text.optimizer")


@pytest.mark.parametrize(
    ("value", "message"), [("fast", "valid number"), (True, "valid number"), (-1.0, "must lie in 0..10 .0 and 10 excluded")]
)
def test_an_ill_typed_or_impossible_value_is_named_with_its_path(value, message):
    with pytest.raises(ConfigError, match=rf"stages.text.optimizer.*{message}"):
        OPTIMIZERS.build({"kind": "adamw", "learning_rate": value}, path="stages.text.optimizer")


def test_sizes_of_the_parent_reach_the_field_of_that_name_only(monkeypatch):
    registry = Registry("test", {"sized": f"{__name__}:Sized"})
    monkeypatch.setattr(registry, "resolve", lambda kind: Sized)
    assert registry.build("sized", shared={"seq_len": 7, "unused": 3}) == Sized(seq_len=7)


def test_local_code_runs_only_when_allowed(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    size: int = 2\n")
    with pytest.raises(ConfigError, match="--allow-local-code"):
        ROOM.resolve(f"{file}:Mine")
    monkeypatch.setenv(ALLOW_LOCAL_CODE, "1")
    assert ROOM.build({"kind": f"{file}:Mine", "size": 5}).size == 5


def test_local_code_is_read_as_it_stands_even_when_it_changed_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW_LOCAL_CODE, "1")
    file = tmp_path / "mine.py"
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass(frozen=True)\nclass Mine:\n    size: int = 2\n"
    for size in ("2", "3"):
        file.write_text(text.replace("2", size))
        os.utime(file, (10**9, 10**9))
        assert ROOM.build(f"{file}:Mine").size == int(size)
    assert list(tmp_path.iterdir()) == [file], "no bytecode beside a user's file"


def test_parts_of_other_packages_are_found_and_looked_for_once(monkeypatch):
    from types import SimpleNamespace

    from seedbed.core import registry as module

    asked = []

    def points(*, group):
        asked.append(group)
        value = "seedbed.views.shuffled:Shuffled"
        return [SimpleNamespace(name=name, value=value) for name in ("theirs", "next_token")]

    module._published.cache_clear()
    monkeypatch.setattr(module, "entry_points", points)
    assert [set(ROOM), set(ROOM)] == [{"next_token", "theirs"}] * 2 and asked == ["seedbed.views"]
    assert ROOM.resolve("theirs").__name__ == "Shuffled" and ROOM.resolve("next_token").__name__ == "NextToken"
    module._published.cache_clear()
