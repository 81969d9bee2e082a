"""Mean, standard deviation and count of every numeric column, over all organizations.

An ordinary vantage6 5 algorithm: `read_csv` makes the dataframe at each node, `partial`
computes the moments of one node's rows, `central` has `partial` computed everywhere and
combines the answers.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.data_extraction import read_csv
from vantage6.algorithm.decorator import action
from vantage6.algorithm.decorator.algorithm_client import algorithm_client
from vantage6.algorithm.decorator.data import dataframe

__all__ = ["central", "partial", "read_csv"]


@action.federated
@dataframe(1)
def partial(df: pd.DataFrame) -> dict[str, Any]:
    """Return {"columns": {NAME: {"count", "mean", "m2"} or None}} of the node's own rows.

    m2 is the sum of squared deviations from the mean: unlike a sum of squares it loses
    no digits when the mean is large. None marks a column that holds something else than
    numbers; a column without any value counts as a numeric one with no value.
    """
    return {"columns": {str(name): _moments(df[name].dropna()) for name in df.columns}}


def _moments(values: pd.Series) -> dict[str, float] | None:
    if values.empty:
        return {"count": 0, "mean": 0.0, "m2": 0.0}
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return None
    numbers = [float(x) for x in values]
    mean = math.fsum(numbers) / len(numbers)
    return {
        "count": len(numbers),
        "mean": mean,
        "m2": math.fsum((x - mean) ** 2 for x in numbers),
    }


@action.central
@algorithm_client
def central(client: AlgorithmClient) -> dict[str, Any]:
    """Return {"columns": {NAME: {"mean", "std", "count"}}} over all organizations."""
    organizations = [o["id"] for o in client.organization.list()]
    task = client.task.create(
        method="partial", organizations=organizations, name="partial average"
    )
    if "id" not in task:
        raise RuntimeError(f"the subtask was refused: {task}")
    parts = client.wait_for_results(task["id"], interval=0.2)
    if len(parts) != len(organizations) or None in parts:
        raise RuntimeError(
            f"{len(parts)} of {len(organizations)} organizations gave a result"
        )
    return {"columns": combine([part["columns"] for part in parts])}


def combine(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine moments pairwise (Chan, Golub, LeVeque 1983): columns that are numeric at
    every organization, with the sample standard deviation (n - 1)."""
    answer = {}
    for name in parts[0]:
        moments = [part.get(name) for part in parts]
        if None in moments:
            continue
        count, mean, m2 = 0, 0.0, 0.0
        for part in moments:
            if part["count"] == 0:
                continue
            total = count + part["count"]
            delta = part["mean"] - mean
            mean += delta * part["count"] / total
            m2 += part["m2"] + delta**2 * count * part["count"] / total
            count = total
        answer[name] = {
            "mean": _finite(mean) if count else None,
            "std": _finite(math.sqrt(m2 / (count - 1))) if count > 1 else None,
            "count": count,
        }
    return answer


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None
