import pytest

from seedbed.core.config import merged, parse_count, parse_value, parse_yaml, read_yaml, set_path
from seedbed.core.errors import ConfigError, DataError


def test_yaml_1_2_reads_numbers_and_languages_as_meant():
    read = parse_yaml("rate: 1e-4\nlanguage: no\nswitch: true\noctal: 010", name="r")
    assert read == {"rate": 1e-4, "language": "no", "switch": True, "octal": 10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2.*duplicate key"),
        ("a: [1, 2", "line"),
        ("- 1", "must hold a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_broken_yaml_is_one_sentence_that_names_the_place(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, name="r.yaml")
    assert "\n" not in str(caught.value)


def test_too_many_aliases_are_refused():
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("a: &x 1\nb: [" + ", ".join(["*x"] * 101) + "]", name="r")


def test_a_missing_and_a_binary_file_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        read_yaml(tmp_path / "bad.yaml")


def test_counts_take_units_and_refuse_the_rest():
    assert [parse_count(x) for x in ("164M", "9.0B", "36k", 12, 1e3)] == [164_000_000, 9_000_000_000, 36_000, 12, 1000]
    for wrong in ("1.5", "M", "12 monkeys", True, 0.5):
        with pytest.raises(ConfigError):
            parse_count(wrong)


def test_paths_address_list_elements_by_name():
    tree = {"stages": [{"name": "soil"}, {"name": "text", "budget": {"steps": 1}}]}
    set_path(tree, "stages.text.budget.steps", 5)
    assert tree["stages"][1]["budget"]["steps"] == 5
    with pytest.raises(ConfigError, match="no element 'txt'; did you mean 'text'"):
        set_path(tree, "stages.txt.budget", 5)


def test_a_part_by_its_bare_name_can_be_given_settings():
    tree = {"optimizer": "adamw"}
    set_path(tree, "optimizer.learning_rate", 0.1)
    assert tree == {"optimizer": {"kind": "adamw", "learning_rate": 0.1}}


def test_merging_replaces_lists_joins_mappings_and_removes_by_null():
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"x": None}}) == {"a": {"y": 2}}
    assert merged({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}


def test_a_command_line_value_is_read_as_yaml():
    assert [parse_value(x) for x in ("1e-4", "no", "[a, 1]", "null")] == [1e-4, "no", ["a", 1], None]
