"""The artefacts that runs read, made before the runs begin (prepare/artefacts.py)."""

from collections.abc import Callable, Iterable

from seedbed.engine.ranks import join_ranks
from seedbed.experiments.plan.run_plan import RunPlan
from seedbed.experiments.run.artefact_facts import refuse_unmade
from seedbed.experiments.run.givers import chain_of


def make_all(plans: Iterable[RunPlan], *, say: Callable[[str], None]) -> None:
    """Make what is not made yet of all that plans and their givers read.

    Raises DataError among several ranks, which would wait for one: there artefacts are made beforehand.
    """
    wanted = [read for plan in plans for read in (plan, *chain_of(plan)) if read.prepare]
    if not wanted:
        return
    if join_ranks().size > 1:
        for plan in wanted:
            refuse_unmade(plan)
        return
    from seedbed.experiments.prepare.artefacts import make_artefacts  # whose curation compiles: slow to import

    make_artefacts(wanted, say=say)
