"""Importance of the varied fields of a sweep for a result."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

METHOD = (
    "permutation importance: loss of R² of a random forest of 200 trees, fitted to the finished trials, where the "
    "values of one field are shuffled; mean of 20 shuffles. It describes these trials alone"
)

LEAST_TRIALS = 6
"""Finished trials below which nothing is told."""


def importance(trials: pd.DataFrame, varied: Sequence[str], column: str) -> dict[str, float]:
    """Importance of every varied field; empty where there are too few trials or all have the same result.

    Args:
        trials: rows of the table of trials.
        varied: dotted names of the fields.
        column: the result.
    """
    done = trials[(trials["state"] == "finished") & trials[column].notna()]
    if len(done) < LEAST_TRIALS or float(np.ptp(done[column])) == 0 or not varied:
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    codes = np.stack([_codes([dict(values).get(name) for values in done["values"]]) for name in varied], axis=1)
    result = done[column].to_numpy(dtype=float)
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(codes, result)
    found = permutation_importance(forest, codes, result, n_repeats=20, random_state=0)
    return dict(zip(varied, map(float, found.importances_mean), strict=True))


def _codes(texts: Sequence[str | None]) -> np.ndarray:
    """Values of one field as numbers: themselves, else their order of appearance; -1 where the field does not apply."""
    values = [None if text is None else json.loads(text) for text in texts]
    if all(value is None or _is_number(value) for value in values):
        return np.array([-1.0 if value is None else float(value) for value in values])
    order = list(dict.fromkeys(text for text in texts if text is not None))
    return np.array([-1.0 if text is None else float(order.index(text)) for text in texts])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
