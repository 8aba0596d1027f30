"""The preparation as a datatrove pipeline gives the bytes of `seedbed prepare`."""

import json

import pytest

pytest.importorskip("datatrove")

from seedbed.core.errors import DataError
from seedbed.experiments.prepare import inputs
from seedbed.experiments.prepare.at_scale import describe, run_local
from seedbed.experiments.prepare.prepare import prepare
from tests.experiments.test_prepare import _hashes, _text


@pytest.fixture
def files(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for f in range(5):
        lines = [json.dumps({"text": _text(100 * f + i)}) for i in range(30)]
        (folder / f"{f}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(inputs, "UNIT_BYTES", 6000)
    return folder


@pytest.mark.slow
def test_two_workers_of_the_local_executor_make_the_bytes_of_prepare(files, tmp_path):
    settings = {"duplicates": "near", "valid_share": 0.1}
    prepare([files], tmp_path / "plain", say=lambda line: None, **settings)
    found = run_local(files, out=tmp_path / "piped", tasks=3, workers=2, logs=tmp_path / "logs", **settings)
    assert found.manifest["documents"] == 150
    assert _hashes(tmp_path / "piped") == _hashes(tmp_path / "plain")


def test_tasks_share_the_units_and_the_seal_asks_for_all_of_them(files, tmp_path):
    units, sealed = describe(files, out=tmp_path / "out")
    list(units[0].run(rank=0, world_size=2))
    with pytest.raises(DataError, match="units are missing"):
        list(sealed[0].run())
    list(units[0].run(rank=1, world_size=2))
    list(sealed[0].run())
    prepare([files], tmp_path / "plain", say=lambda line: None)
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "plain")
