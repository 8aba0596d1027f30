import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from seedbed.core.errors import DataError
from seedbed.experiments import commands
from seedbed.report import figures
from seedbed.report.page import write_page


class Strict(HTMLParser):
    """Collects tags, and fails on ones that are closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        if tag not in ("meta", "img", "br", "hr", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_self_contained_and_safe(a_run):
    folder = a_run / "run"
    html = (folder / "report.html").read_text()
    parser = Strict()
    parser.feed(html)
    assert parser.open == []
    assert "script" not in parser.tags and "link" not in parser.tags
    assert all(s.startswith("data:image/png;base64,") for s in parser.sources)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html and "#010203" not in html
    assert html.count("<svg") == 3 and "currentColor" in html
    for name in ("curves", "rules", "complexity"):
        assert (folder / f"figures/{name}.svg").read_text().startswith("<svg")
        assert json.loads((folder / f"figures/{name}.json").read_text())


@pytest.mark.pages
def test_text_from_recipe_and_model_is_escaped(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace('prompts: ["a"]', 'prompts: ["<b>&x</b><script>alert(1)</script>"]'))
    folder = commands.run(recipe, out=tmp_path / "run", arm="nca", threads=1, say=lambda line: None).folder
    html = (folder / "report.html").read_text()
    assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.fixture
def copied(a_run, tmp_path):
    """A run folder to be changed."""
    return shutil.copytree(a_run / "run", tmp_path / "run")


@pytest.mark.pages
def test_a_page_can_be_written_anew_and_is_the_same(copied):
    folder, html = copied, (copied / "report.html").read_text()
    (folder / "report.html").unlink()
    assert write_page(folder).read_text() == html


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither comparison.json nor final.json"):
        write_page(tmp_path)


@pytest.mark.slow
def test_pages_are_written_without_torch():
    code = "import sys, seedbed.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_carry_their_data():
    series = {"scratch": {"0": [(1, 3.0), (2, 2.0)], "1": [(1, 3.2), (2, 2.2)]}}
    made = figures.curves(series, xlabel="tokens", ylabel="nats", what="text")
    assert made.data["scratch"] == {"x": [1, 2], "mean": [3.1, 2.1], "low": [3.0, 2.0], "high": [3.2, 2.2]}
    assert re.search(r'<svg [^>]*viewBox="[^"]*"', made.svg) and 'width="504' not in made.svg[:300]
    assert figures.curves(series, xlabel="tokens", ylabel="nats", what="text").svg == made.svg, (
        "the same data give the same bytes"
    )


@pytest.mark.pages
def test_the_page_tells_what_was_taken_over_and_what_leapt(copied):
    folder, html = copied, (copied / "report.html").read_text()
    assert "Stage text took weights over from <code>soil</code>." in html and "leapt" not in html
    final = json.loads((folder / "final.json").read_text())
    spike = {"loss_nats": {"usual": 3.5, "deviation": 0.1}}
    final["spikes"] = [{"stage": "text", "run_step": 9, "loss_nats": 7.25, "gradient_norm": 2.5, "spikes": spike}]
    (folder / "final.json").write_text(json.dumps(final))
    html = write_page(folder).read_text()
    assert "leapt" in html and "7.2500" in html and "3.5000" in html
    parser = Strict()
    parser.feed(html)
    assert parser.open == []
