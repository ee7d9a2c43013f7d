"""Metadata of a slim network's file."""

from ekgsearch.pipeline.state import RunState
from ekgsearch.records import Subnetwork, canonical_json


def structure_metadata(state: RunState, subnetwork: Subnetwork) -> dict[str, str]:
    """What `ekgsearch.pipeline.load.load_slim` needs beside the tensors to rebuild a slim network."""
    return {
        "net": canonical_json(state.setup.net.to_dict()),
        "subnetwork": canonical_json(subnetwork.to_dict()),
        "mean": canonical_json(list(state.setup.mean)),
        "std": canonical_json(list(state.setup.std)),
    }
