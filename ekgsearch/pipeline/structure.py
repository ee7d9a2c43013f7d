"""Metadata of a slim network's file."""

from ekgsearch.pipeline.setup import Setup
from ekgsearch.records import Subnetwork, canonical_json


def structure_metadata(setup: Setup, subnetwork: Subnetwork) -> dict[str, str]:
    """What `ekgsearch.pipeline.load.load_slim` needs next to the tensors to rebuild a slim network."""
    return {
        "net": canonical_json(setup.net.to_dict()),
        "subnetwork": canonical_json(subnetwork.to_dict()),
        "mean": canonical_json(list(setup.mean)),
        "std": canonical_json(list(setup.std)),
    }
