"""The search and the memory bank: one team of workers does both."""

import logging
from dataclasses import replace

from ekgsearch.channels.slim import slim
from ekgsearch.finetune.config import BANK_OBJECTIVES
from ekgsearch.pipeline.bank import fill_bank, has_bank
from ekgsearch.pipeline.decisions import decisions
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.structure import structure_metadata
from ekgsearch.pipeline.tables import write_tables
from ekgsearch.records import Phase, Subnetwork, canonical_json
from ekgsearch.runtime.progress import Progress
from ekgsearch.search.ekg import EkgSearch, EkgSettings
from ekgsearch.search.racing import Racing
from ekgsearch.search.uniform import uniform_width
from ekgsearch.sections.search import SearchSection
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.team import Team

log = logging.getLogger(__name__)


def search_and_fill_bank(state: RunState) -> None:
    """Find the sub-network, write the slim network, and build the memory bank if the fine-tuning needs one."""
    job = state.setup.job
    needs_bank = job.finetune.objective in BANK_OBJECTIVES
    if job.search.method == "uniform":
        if not state.line("search"):
            _finish_search(state, uniform_width(state.open_graph(), state.setup.budget))
        return
    is_searched, is_filled = state.line("search"), not needs_bank or has_bank(state)
    if is_searched and is_filled:
        state.committed("search")
        return
    workload, spec = state.setup.workload(state.start_weights, state.setup.devices.search), state.setup.search_spec
    if is_searched:
        spec = replace(spec, batches=())  # the bank replaces damaged pictures: nobody may stop at one of the search
    with state.backend.team(workload, spec) as team:
        if not is_searched:
            _search(state, team)
            write_tables(state)
        if not is_filled:
            fill_bank(state, team)
            write_tables(state)


def ekg_settings(section: SearchSection, spec: SearchSpec) -> EkgSettings:
    """Choices of a search whose candidates are evaluated under a spec."""
    quirks = frozenset(section.quirks)
    return EkgSettings(step=section.step, trim=section.trim, quirks=quirks, tie_tolerance=spec.tie_tolerance)


def _search(state: RunState, team: Team) -> None:
    setup, job = state.setup, state.setup.job
    made = decisions(state)
    if made:
        log.info("continuing the search after iteration %d", made[-1].iteration)
    full = setup.budget.measured(setup.full_costs.macs, setup.full_costs.params)
    to_remove = full - setup.budget.limit
    unit = f"{setup.budget.unit} removed"
    racing = _racing(state, team)
    search = EkgSearch(setup.graph, racing or team, setup.budget, ekg_settings(job.search, setup.search_spec))
    with (
        state.ledger.attempt(
            Phase.SEARCH, setup.devices.name(setup.devices.search), state.backend.num_search_devices
        ) as clock,
        Progress("search", round(to_remove), unit, log) as progress,
    ):
        team.charge(clock)
        removed = 0
        if made:
            removed = full - setup.budget.measured(made[-1].macs, made[-1].params)
            progress.advance(removed)
        for decision in search.run(made):
            state.journal.append("iteration", **decision.to_record())
            made.append(decision)
            now = full - setup.budget.measured(decision.macs, decision.params)
            progress.advance(
                now - removed,
                iteration=decision.iteration,
                group=decision.group,
                loss=f"{decision.evaluation.loss:.4f}",
                reduction=f"{now / full:.1%}",
            )
            removed = now
    if racing is not None:
        log.info("racing evaluated %.1f %% of the candidates' batches", 100 * racing.share_evaluated)
    _finish_search(state, made[-1].subnetwork)


def _racing(state: RunState, team: Team) -> Racing | None:
    """The evaluator that lets candidates race, if the job asks for it."""
    error, spec = state.setup.job.search.racing, state.setup.search_spec
    if error is None:
        return None
    return Racing(team, [index for index, _ in spec.batches], error, spec.nominal_batch)


def _finish_search(state: RunState, subnetwork: Subnetwork) -> None:
    """Write the chosen sub-network and its slim network, then commit them."""
    write_atomically(state.folder / "subnetwork.json", (canonical_json(subnetwork.to_dict()) + "\n").encode())
    slimmed = slim(state.open_graph(), subnetwork)
    path = state.folder / "slim.safetensors"
    save_tensors(path, slimmed.state_dict(), structure_metadata(state, subnetwork))
    state.commit("search", path, subnetwork=subnetwork.sha256)
