from seedbed.core.draws import key, stream
from seedbed.core.ledger import Ledger
from seedbed.core.records import Cost


def test_keys_are_the_same_on_every_machine_and_depend_on_every_name():
    assert key(0, "nca", "rule", "train") == 0xA1A28A1248306C85
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, 1), (0, "1")]
    assert len({key(*n) for n in names}) == len(names)


def test_a_stream_starts_anew_each_time():
    assert stream(3, "order").integers(0, 100, 5).tolist() == stream(3, "order").integers(0, 100, 5).tolist()


def test_the_ledger_adds_by_stage_and_line_and_survives_json():
    ledger = Ledger()
    ledger.charge("soil", "generate", Cost(flops_run=5.0, seconds=1.0))
    ledger.charge("soil", "generate", Cost(flops_run=7.0, seconds=2.0))
    ledger.charge("text", "train", Cost(positions=10, flops_run=1.0))
    ledger.show("soil", "nca", 100)
    ledger.show("soil", "nca", 28)
    again = Ledger.from_json(ledger.to_json())
    assert again.to_json() == ledger.to_json()
    assert again.total(["soil"]) == Cost(flops_run=12.0, seconds=3.0)
    assert ledger.to_json()["soil"]["tokens"] == {"nca": 128}


def test_what_was_given_is_not_charged():
    ledger = Ledger()
    ledger.charge("text", "train", Cost(flops_run=1e9, given_by="a hub teacher"))
    assert ledger.total() == Cost()
