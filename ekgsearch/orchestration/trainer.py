"""A trainer of Ray Train whose run can be ended at once."""

import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.placement_group import PlacementGroup, remove_placement_group


class EndableTrainer(TorchTrainer):
    """Runs a training that another thread can end, and leaves no actor and no placement group.

    Ray Train gives nobody the handle of its controller, whose end is the end of the processes that it has started. The
    placement groups of a controller that died are left to a detached actor that asks the dashboard whether it lives,
    which a local session does not have; here the driver removes them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._controller: Any = None
        self._is_ended = False

    def end(self) -> None:
        """Kill controller and processes; `fit` then raises an error of Ray."""
        with self._lock:
            self._is_ended = True
            if self._controller is not None:
                ray.kill(self._controller)

    def _initialize_and_run_controller(self, *, callbacks: Sequence[object], **options: Any) -> Result:
        """Do as the method of Ray Train that this replaces does, and keep the handle of the controller."""
        own = [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        actor = ray.remote(
            num_cpus=0, label_selector=here, scheduling_strategy="DEFAULT", runtime_env={"env_vars": environment}
        )(TrainController)
        with self._lock:
            if self._is_ended:
                raise RayError("the training was ended before it began")
            self._controller = actor.remote(callbacks=own, **options)
        try:
            ray.get(self._controller.run.remote())
            result: Result = ray.get(self._controller.get_result.remote())
            return result
        finally:
            ray.kill(self._controller)
            _remove_groups_of(self._controller)


def _remove_groups_of(controller: Any) -> None:
    """Remove the placement groups that an actor has made; what Ray shows of a group lacks who made it."""
    creator = controller._actor_id.binary()
    for data in cluster_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.creator_actor_id == creator:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
