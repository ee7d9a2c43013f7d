"""The pipeline knows no method by its name: a new one needs no change to it."""

import ast
from pathlib import Path

import ekgsearch
from ekgsearch.experiment import Job
from ekgsearch.fields import kinds_of

PIPELINE = Path(ekgsearch.__file__).parent / "pipeline"


def test_no_module_of_the_pipeline_compares_anything_with_the_name_of_a_method() -> None:
    names = {kind.model_fields["method"].default for kind in kinds_of(Job, "search")}
    assert {"ekg", "epruner", "uniform"} <= names
    found = [
        f"{path.name}:{node.lineno}"
        for path in PIPELINE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    ]
    assert found == []
