"""The search and the memory bank: one team of workers does both."""

import logging
from dataclasses import replace
from pathlib import Path

from ekgsearch.bank.bank import closest_bank
from ekgsearch.bank.build import commit, manifest_key, missing_blocks
from ekgsearch.bank.manifest import BankManifest, BankSpec, id_ranges
from ekgsearch.bank.space import check_space
from ekgsearch.channels.head import classifier
from ekgsearch.channels.slim import slim
from ekgsearch.errors import StorageError
from ekgsearch.experiment import expand_path
from ekgsearch.finetune.config import BANK_OBJECTIVES, EMBEDDING_OBJECTIVES
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.tables import decisions, note_replaced, replaced_in_bank, teachers_of, write_tables
from ekgsearch.pipeline.team import BankOrder, Team
from ekgsearch.pipeline.training import BankAddress
from ekgsearch.pipeline.worker import BuiltBlock, SearchPlan
from ekgsearch.records import Phase, Subnetwork, canonical_json, content_hash
from ekgsearch.runtime.progress import Progress
from ekgsearch.search.ekg import EkgSearch, EkgSettings
from ekgsearch.search.racing import Racing
from ekgsearch.search.uniform import uniform_width
from ekgsearch.sections.search import SearchSection
from ekgsearch.storage.files import file_sha256, write_atomically
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.tensors import save_tensors

log = logging.getLogger(__name__)

MOST_BATCHES_PER_BLOCK = 8
"""Batches in one stored block of the memory bank, unless that leaves the workers too few blocks to share."""

MOST_BLOCK_BYTES = 8_000_000
"""Bytes of one stored block, unless one batch is more: a store takes so many in one request."""


def search_and_fill_bank(state: RunState) -> None:
    """Find the sub-network, write the slim network, and build the memory bank if the fine-tuning needs one."""
    job = state.setup.job
    needs_bank = job.finetune.objective in BANK_OBJECTIVES
    if job.search.method == "uniform":
        if not state.line("search"):
            _finish_search(state, uniform_width(state.open_graph(), state.setup.budget))
        return
    is_searched, is_filled = state.line("search"), not needs_bank or _has_bank(state)
    if is_searched and is_filled:
        state.committed("search")
        return
    workload, plan = state.setup.workload(state.start_weights, state.setup.devices.search), state.setup.search_plan
    if is_searched:
        plan = replace(plan, batches=())  # the bank replaces damaged pictures: nobody may stop at one of the search
    with state.backend.team(workload, plan) as team:
        if not is_searched:
            _search(state, team)
            write_tables(state)
        if not is_filled:
            _fill_bank(state, team)
            write_tables(state)


def _has_bank(state: RunState) -> bool:
    """Whether nothing has to be built: the fine-tuning has ended, or the store holds all that its manifest names.

    A bank that the journal names may have been lost or damaged since, or the job may name another store by now.
    """
    if state.line("finetune"):
        return True
    if not state.line("bank"):
        return False
    spec, store = bank_address(state).spec, open_store(bank_uri(state))
    key = manifest_key(spec)
    if not store.exists(key):
        return False
    try:
        shards = BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}").shards
    except StorageError as error:
        log.warning("%s", error)
        return False
    sizes = store.sizes(f"{spec.prefix}/block-")
    return all(sizes.get(shard.key) == shard.bytes for shard in shards)


def check_bank_store(state: RunState) -> None:
    """Find out before any work whether the memory bank and its local copy have room, and what the store can do.

    Before the search nobody knows the teachers, so nothing counts as stored. On a cluster that was named, the local
    copies are those of other machines.
    """
    job = state.setup.job
    if job.finetune.objective not in BANK_OBJECTIVES or state.line("finetune"):
        return
    if state.line("search"):
        spec = bank_address(state).spec
    else:
        spec = bank_spec(state, teachers=("?",) * job.bank.teachers, weights_hash="?")
    store = open_store(bank_uri(state))
    check_space(store, spec, _cache_dir(state) if job.cluster.session_address is None else None)
    log.info("memory bank in %s, create-once writes: %s", store.uri, "yes" if store.creates_once else "no")


def bank_uri(state: RunState) -> str:
    """Where the memory bank lives: as the job says, else inside the run directory; folders are absolute."""
    uri = state.setup.job.bank.uri
    if uri is None:
        return str(own_bank(state.folder))
    return uri if "://" in uri else str(expand_path(uri, "bank.uri").absolute())


def own_bank(run_dir: Path) -> Path:
    """Where the memory bank lives unless the job says otherwise; jobs of other runs may name this folder, too."""
    return run_dir / "bank"


def bank_address(state: RunState) -> BankAddress:
    """The complete memory bank of this run."""
    made = decisions(state)
    chosen = teachers_of(state, made)
    teachers = tuple(made[index].subnetwork.sha256 for index in chosen)
    spec = bank_spec(state, teachers=teachers, weights_hash=file_sha256(state.start_weights))
    resident = state.setup.job.bank.resident
    return BankAddress(spec=spec, uri=bank_uri(state), cache_dir=_cache_dir(state), resident=resident)


def _cache_dir(state: RunState) -> Path:
    folder = state.setup.job.bank.cache
    return expand_path(folder, "bank.cache").absolute() if folder else state.folder / "bank-cache"


def bank_spec(state: RunState, *, teachers: tuple[str, ...], weights_hash: str) -> BankSpec:
    """What the memory bank of this run is made of."""
    setup, section = state.setup, state.setup.job.bank
    ids, num_images = setup.train_ids, len(setup.dataset.train)
    if ids is not None and len(ids) == num_images:
        ids = None
    num_images = num_images if ids is None else len(ids)
    num_batches = -(-num_images // section.batch_size)
    has_embeddings = section.embeddings or setup.job.finetune.objective in EMBEDDING_OBJECTIVES
    spec = BankSpec(
        dataset_hash=setup.dataset.train.content_hash,
        weights_hash=weights_hash,
        network_hash=content_hash([setup.net.to_dict(), setup.mean, setup.std]),
        teachers=teachers,
        num_images=num_images,
        ids=() if ids is None else id_ranges(ids),
        num_classes=setup.dataset.num_classes,
        batch_size=section.batch_size,
        seed=setup.job.seed,
        embeddings=classifier(setup.graph).width if has_embeddings else 0,
        dtype=section.dtype,
    )
    batch_bytes = section.batch_size * spec.row_format.row_bytes
    most = max(1, min(MOST_BATCHES_PER_BLOCK, num_batches // 16, MOST_BLOCK_BYTES // batch_bytes))
    return replace(spec, batches_per_block=most)


def ekg_settings(section: SearchSection, plan: SearchPlan) -> EkgSettings:
    """Choices of a search whose candidates are evaluated under a plan."""
    quirks = frozenset(section.quirks)
    return EkgSettings(step=section.step, trim=section.trim, quirks=quirks, tie_tolerance=plan.tie_tolerance)


def _search(state: RunState, team: Team) -> None:
    setup, job = state.setup, state.setup.job
    made = decisions(state)
    if made:
        log.info("continuing the search after iteration %d", made[-1].iteration)
    full = setup.budget.measured(setup.full_costs.macs, setup.full_costs.params)
    to_remove = full - setup.budget.limit
    unit = f"{setup.budget.unit} removed"
    racing = _racing(state, team)
    search = EkgSearch(setup.graph, racing or team, setup.budget, ekg_settings(job.search, setup.search_plan))
    with (
        state.ledger.attempt(Phase.SEARCH, setup.devices.name(setup.devices.search), _devices(state)) as clock,
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
    error, plan = state.setup.job.search.racing, state.setup.search_plan
    if error is None:
        return None
    return Racing(team, [index for index, _ in plan.batches], error, plan.nominal_batch)


def _finish_search(state: RunState, subnetwork: Subnetwork) -> None:
    """Write the chosen sub-network and its slim network, then commit them."""
    write_atomically(state.folder / "subnetwork.json", (canonical_json(subnetwork.to_dict()) + "\n").encode())
    slimmed = slim(state.open_graph(), subnetwork)
    path = state.folder / "slim.safetensors"
    save_tensors(path, slimmed.state_dict(), structure_metadata(state, subnetwork))
    state.commit("search", path, subnetwork=subnetwork.sha256)


def structure_metadata(state: RunState, subnetwork: Subnetwork) -> dict[str, str]:
    """What `ekgsearch.pipeline.load.load_slim` needs beside the tensors to rebuild a slim network."""
    return {
        "net": canonical_json(state.setup.net.to_dict()),
        "subnetwork": canonical_json(subnetwork.to_dict()),
        "mean": canonical_json(list(state.setup.mean)),
        "std": canonical_json(list(state.setup.std)),
    }


def _fill_bank(state: RunState, team: Team) -> None:
    made = decisions(state)
    chosen = teachers_of(state, made)
    if len(chosen) < state.setup.job.bank.teachers:
        log.warning(
            "bank.teachers = %d, but the search left %d interim sub-networks beside the student: using %d",
            state.setup.job.bank.teachers,
            len(made) - 1,
            len(chosen),
        )
    spec, uri = bank_address(state).spec, bank_uri(state)
    store = open_store(uri)
    blocks = missing_blocks(store, spec, verify=True)
    log.info(
        "%s: %d of %d blocks of the memory bank are to be built%s",
        store.uri,
        len(blocks),
        spec.num_blocks,
        closest_bank(store, spec) if len(blocks) == spec.num_blocks else "",
    )
    teachers = tuple(made[index].subnetwork for index in chosen)
    devices = state.setup.devices
    state.backend.enlist(len(blocks))
    with (
        state.ledger.attempt(Phase.BANK, devices.name(devices.search), _devices(state)) as clock,
        Progress(f"memory bank of {len(chosen)} teachers", spec.num_images, "images", log) as progress,
    ):
        team.charge(clock)

        def on_block(built: BuiltBlock) -> None:
            progress.advance(built.images)
            note_replaced(state, built.block, built.replaced)

        team.build_bank(BankOrder(spec=spec, teachers=teachers, blocks=tuple(blocks), uri=uri), on_block)
        manifest = commit(store, spec)
    replaced = replaced_in_bank(state)
    if replaced:
        log.warning("memory bank: for %d images another one of their class stands in, theirs is damaged", replaced)
    line = state.line("bank")
    if line is None:
        state.journal.append("bank", manifest=manifest.sha256, teachers=list(chosen))
    elif line["manifest"] != manifest.sha256:
        log.warning(
            "%s: the memory bank was built again and differs from the one that the journal names (manifest %s, now "
            "%s): another kind of device, or other versions, round differently; or pictures that were replaced at one "
            "time were sound at the other",
            store.uri,
            line["manifest"],
            manifest.sha256,
        )


def _devices(state: RunState) -> int:
    return state.backend.num_search_devices
