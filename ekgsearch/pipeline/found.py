"""Names of what a phase leaves that has found a sub-network."""

SEARCH = "search"
"""Instance of the phase that searches as the job says; those of baselines are `search-NAME`."""


def slim_file(search: str) -> str:
    """Name of the file with the weights that fine-tuning starts from, of a phase that has found a sub-network."""
    return f"slim{search.removeprefix(SEARCH)}.safetensors"


def subnetwork_file(search: str) -> str:
    """Name of the file with the channels that stay."""
    return f"subnetwork{search.removeprefix(SEARCH)}.json"
