"""One-line breakages, each of which a named test must catch: `make mutants`.

Every mutant is made in a copy of the package; its test is run against the copy, in a process of its own, and must fail (and
must pass without it, which `make test` shows). `make mutants SINCE=2` tries those alone whose file or test was touched by the
commits of the last two days.
"""

import gc
import importlib
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
IMPORTED = (  # once, and not in every process that follows
    "torch._dynamo",
    "numba.core.event",
    "scipy.stats",
    "hypothesis",
    "beartype",
    "jaxtyping",
    "pydantic",
    "typer",
    "tokenizers",
    "matplotlib.figure",
)


class Mutant(NamedTuple):
    """What is broken, where, how, and which test must notice."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "patch endianness",
        "nca/patches.py",
        "(self.states ** np.arange(p * p)).astype(np.int32)",
        "(self.states ** np.arange(p * p)[::-1]).astype(np.int32)",
        "nca/test_patches_and_check.py::test_the_first_cell_of_a_patch_is_the_units_digit",
    ),
    Mutant(
        "state axis does not wrap",
        "nca/rule.py",
        "merged[q] += first_KCS[k, n + 1, q]",
        "merged[q] += 0",
        "nca/test_patches_and_check.py::test_the_authors_vectors_are_met",
    ),
    Mutant(
        "gzip of another data type",
        "nca/complexity.py",
        'dtype="<i4"',
        'dtype="<i8"',
        "nca/test_patches_and_check.py::test_the_authors_vectors_are_met",
    ),
    Mutant(
        "float32 decides without a lead",
        "nca/rollout.py",
        "margin = np.float32((np.float64(reach) + slack) * 1.000001)",
        "margin = np.float32(0)",
        "nca/test_automaton.py::test_a_thousand_rows_are_the_golden_bytes_with_one_thread_and_two[1]",
    ),
    Mutant(
        "a match of three bytes from far away",
        "nca/deflate.py",
        "if length == _SHORTEST and at - match_start > _FAR:",
        "if length < _SHORTEST and at - match_start > _FAR:",
        "nca/test_deflate.py::test_inputs_of_many_blocks_and_beyond_the_window_are_zlib_s_too[70000]",
    ),
    Mutant(
        "validation rules drawn like training rules",
        "nca/rule.py",
        '_SPLIT_OF = {"train": 0, "valid": 2, "test": 3}',
        '_SPLIT_OF = {"train": 0, "valid": 0, "test": 0}',
        "nca/test_automaton.py::test_rules_of_different_splits_are_disjoint_by_construction",
    ),
    Mutant(
        "rejected rules are not charged",
        "nca/automaton.py",
        "tries * selection + more",
        "selection + more",
        "nca/test_automaton.py::test_every_accepted_rule_lies_strictly_inside_the_band",
    ),
    Mutant(
        "loss mask off by one",
        "sources/nca.py",
        "weights_T[: self.frame_tokens] = 0",
        "weights_T[: self.frame_tokens + 1] = 0",
        "sources/test_sources.py::test_the_published_row_counts_987_of_1024_targets",
    ),
    Mutant(
        "rotary halves swapped",
        "models/rotary.py",
        "torch.cat([-sin, sin], dim=-1)",
        "torch.cat([sin, -sin], dim=-1)",
        "models/test_transformer.py::test_logits_are_those_of_hugging_face_s_llama",
    ),
    Mutant(
        "transfer skips a tensor",
        "transfer/rules.py",
        'if action != "fresh":',
        'if action != "fresh" and role.tensor != "down":',
        "transfer/test_rules.py::test_the_published_rule_keeps_the_body_and_renews_embedding_and_head",
    ),
    Mutant(
        "Holm in the wrong order",
        "experiments/study/statistics.py",
        "(len(p_values) - rank) *",
        "(1 + rank) *",
        "experiments/test_statistics.py::test_holm_by_hand",
    ),
    Mutant(
        "intervals from the normal distribution",
        "experiments/study/statistics.py",
        "stats.t.ppf(0.5 + level / 2, n - 1)",
        "stats.norm.ppf(0.5 + level / 2)",
        "experiments/test_statistics.py::test_interval_and_p_are_the_paired_t_test_s",
    ),
    Mutant(
        "mean of micro-batch means",
        "engine/step.py",
        "mean = mean + term.weight * part.sum_nats / count",
        "mean = mean + term.weight * part.sum_nats / term.objective.count(batches[term.stream])",
        "engine/test_engine.py::test_the_size_of_a_micro_batch_changes_nothing_but_rounding",
    ),
    Mutant(
        "resume forgets the optimizer's moments",
        "engine/checkpoints.py",
        "optimizer.state[parameter][key] = moved",
        "parameter.moved = moved",
        "engine/test_engine.py::test_half_then_the_other_half_is_the_whole_to_the_bit",
    ),
    Mutant(
        "windows show the token that they ask for",
        "scorers/own_run.py",
        "shown_BT[row, : end - begin] = with_boundary[begin:end]",
        "shown_BT[row, : end - begin] = x[begin:end]",
        "evaluate/test_evaluate.py::test_every_byte_is_scored_once_with_the_loss_it_has_in_its_window",
    ),
    Mutant(
        "bits per byte in nats",
        "evaluate/bits_per_byte.py",
        '"bits_per_byte": nats / log(2) / size',
        '"bits_per_byte": nats / size',
        "evaluate/test_evaluate.py::test_a_uniform_model_over_bytes_has_eight_bits_per_byte",
    ),
    Mutant(
        "what rounding leaves is forgotten",
        "mixture/weighted.py",
        "{n: quota[n] - counts[n] if n in quota else 0.0 for n in target}",
        "dict.fromkeys(target, 0.0)",
        "mixture/test_weighted.py::test_a_window_is_shared_out_by_largest_remainder_and_the_rest_is_owed",
    ),
    Mutant(
        "a shard's hash is not looked at",
        "sources/shards.py",
        "elif hashes and file_hash(file) != digest:",
        "elif False:",
        "experiments/test_prepare.py::test_a_harmed_file_is_named_when_the_folder_is_opened[flip-.bin]",
    ),
    Mutant(
        "sections of a document choose their own side",
        "experiments/prepare/units.py",
        "document=refined, rank=rank)",
        "document=refined, rank=content_key(document.text)[0])",
        "experiments/test_prepare.py::test_all_sections_of_a_book_stand_on_one_side",
    ),
    Mutant(
        "a refiner touches what is evaluated on",
        "experiments/prepare/units.py",
        "if train else document",
        "if rank else document",
        "curate/test_refiners.py::test_a_refiner_changes_what_is_trained_on_and_no_other_side[exact]",
    ),
    Mutant(
        "duplicates are looked for among what refiners keep",
        "experiments/prepare/units.py",
        "yield Candidate(original=document",
        "if refined is not None: yield Candidate(original=document",
        "curate/test_refiners.py::test_a_refiner_changes_what_is_trained_on_and_no_other_side[near]",
    ),
    Mutant(
        "an artefact is charged to nobody",
        "experiments/run/artefact_facts.py",
        "        if charged:",
        "        if not charged:",
        "rehearsal/test_order_from_an_embedder.py::test_a_study_over_an_order_is_prepared_trained_and_judged",
    ),
    Mutant(
        "feedback from behind the checkpoint is kept",
        "experiments/run/feedback.py",
        "if m.step < until or m.name == CHANGED",
        "if True or m.name == CHANGED",
        "experiments/test_mixture_runs.py::test_what_was_measured_behind_the_last_checkpoint_is_measured_and_charged_again",
    ),
    Mutant(
        "the overlap of a cut document is asked twice",
        "packing/pieces.py",
        "            if layout.continued_P[piece]:",
        "            if False:",
        "packing/test_best_fit.py::test_a_long_document_is_cut_with_one_token_of_overlap_that_counts_once",
    ),
    Mutant(
        "a checkpoint's hash is not looked at",
        "engine/checkpoints.py",
        'if found != state["sha256"][name]:',
        "if False:",
        "engine/test_engine.py::test_a_harmed_checkpoint_is_named",
    ),
    Mutant(
        "the schedule forgets the clock",
        "engine/train.py",
        "Progress(step=stage.clock + at.step, steps=stage.clock + stage.steps,",
        "Progress(step=at.step, steps=stage.steps,",
        "experiments/test_borders.py::test_the_clock_moves_the_schedule_on",
    ),
    Mutant(
        "moments cross for what is drawn anew",
        "experiments/run/borders.py",
        'if actions[name] != "keep" or id(parameter) not in trained or values is None or',
        "if id(parameter) not in trained or values is None or",
        "experiments/test_borders.py::test_moments_cross_for_what_is_kept_and_trained_only",
    ),
    Mutant(
        "every layout is let through",
        "experiments/run/layout.py",
        "        if layout_free(plan):",
        "        if True:",
        "experiments/test_layout.py::test_where_draws_hang_on_the_layout_another_one_needs_a_word[micro-batch]",
    ),
    Mutant(
        "data workers run past a decision",
        "engine/feed.py",
        "if at not in self._coming and self._stream.due(at + count) is None:",
        "if at not in self._coming:",
        "experiments/test_mixture_runs.py::test_data_workers_do_not_run_past_a_decision",
    ),
    Mutant(
        "the next step's rows are made before a decision",
        "engine/feed.py",
        "following < until and self._stream.due(following + count) is None:",
        "following < until:",
        "engine/test_feed.py::test_the_next_step_is_made_ahead_but_not_behind_a_decision",
    ),
    Mutant(
        "an exported tokenizer leaves the boundary out",
        "experiments/export/tokenizer.py",
        '"post_processor": _boundary_in_front(boundary, tokenizer.boundary_id)}',
        '"post_processor": spec["post_processor"]}',
        "experiments/test_export.py::test_an_export_opens_without_arguments_with_the_run_s_logits_and_ids",
    ),
    Mutant(
        "a stride may leave tokens out",
        "evaluate/bits_per_byte.py",
        "if self.stride is not None and self.stride > material.seq_len:",
        "if False:",
        "faults/test_bounds.py::test_a_size_that_cannot_be_is_refused_before_there_is_a_folder[evaluate.text.stride=33]",
    ),
    Mutant(
        "looked at, then written, outside the lock",
        "experiments/run/run.py",
        "and its plan alone stands there\n        refuse_taken(folder)",
        "and its plan alone stands there",
        "faults/test_places.py::test_of_two_that_begin_at_once_the_second_sees_the_first[words0-run.run-resolved.yaml]",
    ),
    Mutant(
        "a line that Windows ended is never empty",
        "sources/text.py",
        r"(?=[ \t]*(?:\r\n?|\n))",
        r"(?=[ \t]*\n)",
        "faults/test_readme.py::test_windows_line_ends_are_empty_lines_too[lines_crlf.txt]",
    ),
    Mutant(
        "the tokenizer's place is looked at after training",
        "experiments/prepare/tokenizing.py",
        "    check_tokenizer_place(Path(out))\n",
        "",
        "faults/test_places.py::test_a_place_that_is_taken_is_refused_before_the_work[tokenizer-full]",
    ),
    Mutant(
        "a full standard output ends the work",
        "core/speaking.py",
        "self._stream.flush()\n            except OSError as e:\n                self._give_up(e)",
        "self._stream.flush()\n            except OSError as e:\n                raise",
        "faults/test_surroundings.py::test_nobody_listening_stops_no_work[_full-words1-R/final.json]",
    ),
    Mutant(
        "of an id that comes twice the last value wins",
        "columns/from_file.py",
        "if of in values:",
        "if False:",
        "faults/test_texts.py::test_the_values_of_a_column_are_looked_at",
    ),
    Mutant(
        "files have one set of rights, whatever the umask",
        "core/durable.py",
        "os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)",
        "os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)",
        "faults/test_places.py::test_files_have_the_rights_that_the_umask_leaves[2]",
    ),
    Mutant(
        "one broken folder hides the others",
        "experiments/catalog.py",
        '            status = f"broken: {e}"',
        "            raise",
        "faults/test_surroundings.py::test_one_broken_folder_hides_no_other",
    ),
    Mutant(
        "documents that come back changed are not counted",
        "evaluate/bits_per_byte.py",
        '{"changed": float(changed(tokenizer, d))}',
        '{"changed": 0.0}',
        "faults/test_readme.py::test_a_lossy_tokenizer_is_told_with_the_number",
    ),
    Mutant(
        "decimals lose their last place",
        "core/columns_file.py",
        'n / 10 ** column["places"]',
        'n // 10 ** column["places"] * 1.0',
        "core/test_columns_file.py::test_numbers_of_few_places_come_back",
    ),
    Mutant(
        "labels do not arrive in the batch",
        "engine/batches.py",
        "found[key] = torch.from_numpy(values).to(_WIDE[values.dtype.kind])",
        "found |= {}",
        "engine/test_batches.py::test_every_field_of_a_row_arrives_in_the_batch",
    ),
    Mutant(
        "a branch begins with the first row again",
        "experiments/run/branches.py",
        '"positions": read_state(checkpoint)["counters"]["positions"],',
        '"positions": {},',
        "rehearsal/test_branches.py::test_branches_leave_the_trunk_as_it_is_and_are_evaluated",
    ),
    Mutant(
        "a default moves unseen",
        "optimizers/adamw.py",
        "default=(0.9, 0.95)",
        "default=(0.9, 0.999)",
        "contracts/test_defaults.py::test_no_default_moves_unseen",
    ),
    Mutant(
        "what a masked linear stands for is passed over at a border",
        "experiments/run/borders.py",
        "old |= {role: giver.dense[role] for role in others if role in giver.dense}",
        "old |= {}",
        "rehearsal/test_masked_to_dense.py::test_a_masked_stage_and_a_dense_one",
    ),
    Mutant(
        "a term's schedule is read one step late",
        "engine/step.py",
        "else self.weight(progress)",
        "else self.weight(replace(progress, step=progress.step - 1))",
        "rehearsal/test_early_layers.py::test_late_states_teach_early_ones",
    ),
    Mutant(
        "of a metric of which more is better, less is",
        "experiments/study/statistics.py",
        '(c.mean < 0) == (better == "less")',
        "c.mean < 0",
        "experiments/test_statistics.py::test_where_more_is_better_the_same_difference_is_worse",
    ),
    Mutant(
        "a plan's hash sees no settings of parts",
        "experiments/plan/run_plan.py",
        'return {"kind": kind, **own} if own else kind',
        "return kind",
        "experiments/test_recipe.py::test_any_other_setting_has_a_hash_of_its_own[streams.soil.source.burn_in]",
    ),
    Mutant(
        "a search reads the test part",
        "experiments/run/stages.py",
        "if self.plan.test or not one.part.reads_test]",
        "if one]",
        "experiments/test_study.py::test_a_search_gives_every_arm_as_many_trials_and_never_reads_the_test_part",
    ),
    Mutant(
        "every seed of an arm is timed anew",
        "experiments/estimate/timing.py",
        "if known else _measured(plan)",
        "if known and False else _measured(plan)",
        "experiments/test_timing.py::test_seeds_of_an_arm_share_its_timing_and_a_study_goes_on_with_it",
    ),
    Mutant(
        "a default that is not the class's is taken for one",
        "experiments/plan/run_plan.py",
        "if k in _OF_THE_PARENT or k not in known or v != known[k]",
        "if k not in known or v != known[k]",
        "experiments/test_recipe.py::test_any_other_setting_has_a_hash_of_its_own[streams.soil.source.seq_len]",
    ),
]


def main(days: float | None = None) -> int:
    chosen = [
        m for m in MUTANTS if days is None or _touched(days) & {f"src/seedbed/{m.file}", f"tests/{m.test.split('::')[0]}"}
    ]
    sys.path[0] = str(ROOT)  # in place of this file's folder, where packages have other libraries' names
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # what is there is not looked at again by every process
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    survivors = []
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for mutant, output in zip(chosen, pool.imap(_tried, chosen), strict=True):
            print(f"{'SURVIVED' if output else 'caught':9} {mutant.what}: {mutant.test.split('::')[1]}", flush=True)
            if output:
                survivors.append((mutant.what, output))
    for what, output in survivors:
        print(f"\n{what}:\n{output}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught; there are {len(MUTANTS)}")
    return 1 if survivors else 0


@cache
def _touched(days: float) -> set[str]:
    """The files that commits of the last days have changed, and what is not committed yet."""
    since = ["git", "log", f"--since={days * 24:g} hours ago", "--name-only", "--format="]
    commands = [since, ["git", "diff", "--name-only", "HEAD"]]
    said = [subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout for words in commands]
    return {line for text in said for line in text.splitlines()}


def _tried(mutant: Mutant) -> str:
    """Run a mutant's test against a copy of the package; return what it said if it noticed nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "seedbed"
        shutil.copytree(ROOT / "src/seedbed", copy)
        file = copy / mutant.file
        text = file.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.what}: {mutant.file} holds {mutant.old!r} not once"
        file.write_text(text.replace(mutant.old, mutant.new))
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)  # compiled neighbours may hold what was there before
        code, said = _pytest(mutant.test, package=folder)
    return "" if code == pytest.ExitCode.TESTS_FAILED and "failed" in said else said[-2500:] or "nothing"


def _pytest(test: str, *, package: str) -> tuple[int, str]:
    """Run one test in this process, and the processes that it starts, against the package in a folder."""
    sys.path.insert(0, package)
    os.environ["PYTHONPATH"] = package
    os.chdir(ROOT)
    costs = importlib.import_module("tests.costs")
    costs.LIMIT = math.inf  # a case must fail for what it asserts
    with tempfile.TemporaryFile("w+") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        code = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/{test}"])
        sys.stdout.flush()
        output.seek(0)
        return code, output.read()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else None))
