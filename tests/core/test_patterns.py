import pytest

from seedbed.core.errors import ConfigError
from seedbed.core.patterns import matches
from seedbed.core.records import Role

VALUE_2 = Role("attention", 2, "value")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", True),
        ("attention", True),
        ("attention.value", True),
        ("attention.key", False),
        ("mlp", False),
        ("attention@2", True),
        ("attention@0-2", True),
        ("attention@0-1", False),
        ("block@-2:", True),
        ("block@-1:", False),
        ("attention.value@-2", True),
        ("norm", False),
    ],
)
def test_patterns_address_roles(pattern, expected):
    assert matches(pattern, VALUE_2, num_layers=4) is expected


def test_outer_parts_are_in_no_block():
    assert not matches("block@0:", Role("head"), num_layers=4)
    assert matches("head", Role("head"), num_layers=4)


def test_biases_go_with_their_tensor():
    assert matches("attention.value", Role("attention", 0, "value.bias"), num_layers=1)


@pytest.mark.parametrize("wrong", ["attn", "attention@@2", "", "mlp.up@x"])
def test_wrong_patterns_are_refused(wrong):
    with pytest.raises(ConfigError):
        matches(wrong, VALUE_2, num_layers=4)
