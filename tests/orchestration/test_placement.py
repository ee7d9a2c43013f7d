"""Where search workers find a place, and which batches they own."""

import pytest

from ekgsearch.orchestration.placement import Request, no_room, spread
from ekgsearch.sections.cluster import ClusterSection


def test_gpu_workers_ask_for_a_gpu_and_cpu_workers_for_cores() -> None:
    cluster = ClusterSection(cpus_per_worker=4)
    assert Request.of(cluster, "cuda") == Request(4, 1)
    assert Request.of(cluster, "cpu") == Request(4, 0)
    assert Request.of(cluster, "cuda").devices == 1
    assert Request.of(cluster, "cpu").devices == 4


@pytest.mark.parametrize(
    ("request_", "room"),
    [
        (Request(1, 0), 12),
        (Request(3, 0), 3),
        (Request(16, 0), 0),
        (Request(1, 1), 2),
        (Request(1, 0.5), 4),
        (Request(0.1, 0), 120),
    ],
)
def test_a_worker_fits_into_one_node_or_not_at_all(request_: Request, room: int) -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {"memory": 1e9}]
    assert request_.room(nodes) == room
    assert no_room(request_, room, nodes) is None
    shortage = no_room(request_, room + 1, nodes)
    assert shortage is not None
    assert f"ask for {request_} each" in shortage
    assert f"hold {room} of them" in shortage


def test_every_batch_has_one_owner_and_work_is_even() -> None:
    sizes = [256] * 7 + [40]
    for workers in (1, 2, 3, 8, 20):
        parts = spread(sizes, workers)
        assert len(parts) == min(workers, 8)
        assert sorted(batch for part in parts for batch in part) == list(range(8))
        loads = [sum(sizes[batch] for batch in part) for part in parts]
        assert max(loads) - min(loads) <= 256
        assert all(list(part) == sorted(part) for part in parts)


def test_large_batches_find_an_owner_first() -> None:
    assert spread([40, 256, 256, 256], 3) == [(0, 1), (2,), (3,)]


def test_shares_of_a_core_are_not_lost_to_rounding() -> None:
    assert Request(0.1, 0).room([{"CPU": 0.7}]) == 7


@pytest.mark.parametrize(
    ("request_", "field"), [(Request(4, 0), "cpus_per_worker"), (Request(1, 1), "gpus_per_worker")]
)
def test_advice_names_what_a_job_may_say(request_: Request, field: str) -> None:
    shortage = no_room(request_, 2, [{"CPU": 2.0}])
    assert shortage is not None
    assert shortage.endswith(f"set cluster.search_workers=1, or a smaller cluster.{field}")
