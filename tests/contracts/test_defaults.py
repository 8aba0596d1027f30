"""A plan's hash covers what differs from defaults, so a default that moves changes old recipes under their old hash.

tests/data/defaults.json holds them all, presets included. A default that has to move is a change that users read about: write
the file anew (`python tests/contracts/test_defaults.py`) and say in CHANGELOG.md which results change by it.
"""

import dataclasses
import json
from pathlib import Path

from seedbed.experiments.assemble import rooms
from seedbed.experiments.plan.specs import EvaluationSpec, PrepareSpec, SamplesSpec, StageSpec, StreamSpec, WeightsSpec
from seedbed.experiments.plan.study_specs import MapSpec, StudySpec
from seedbed.experiments.prepare.preparation import settings_of_preparing
from seedbed.models.sizes import SIZES

FILE = Path(__file__).parents[1] / "data/defaults.json"


def defaults():
    """Return every default of a part, of a recipe's own keys, and the sizes of the presets, ready for JSON."""
    found = {
        f"{room}.{name}": {f.name: _default(f) for f in dataclasses.fields(registry.resolve(name)) if f.init}
        for room, registry in rooms().items()
        for name in registry
    }
    for spec in (StreamSpec, StageSpec, WeightsSpec, EvaluationSpec, SamplesSpec, StudySpec, MapSpec, PrepareSpec):
        found[f"recipe.{spec.__name__}"] = {n: f.get_default(call_default_factory=True) for n, f in spec.model_fields.items()}
    found["recipe.prepare"] = settings_of_preparing()
    return json.loads(json.dumps({**found, "sizes": SIZES}, default=repr, sort_keys=True))


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "required" if field.default is dataclasses.MISSING else field.default


def test_no_default_moves_unseen():
    known, now = json.loads(FILE.read_text()), defaults()
    moved = [
        f"{part}.{name}: {known[part][name]!r} -> {now.get(part, {}).get(name, 'gone')!r}"
        for part in known
        for name in known[part]
        if now.get(part, {}).get(name, "gone") != known[part][name]
    ]
    assert not moved, (
        f"{'; '.join(moved)}: recipes and records that leave it out would be computed otherwise under the same hash. Put it "
        "back, or write tests/data/defaults.json anew and say in CHANGELOG.md whose results change"
    )
    new = {f"{part}.{name}" for part in now for name in now[part]} - {f"{p}.{n}" for p in known for n in known[p]}
    assert not new, f"{', '.join(sorted(new))} came along: write tests/data/defaults.json anew (python {Path(__file__).name})"


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
