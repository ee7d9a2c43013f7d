"""The tables of mutants fit the code: every change that they describe can be made in one place."""

import mutants
import pytest


def test_every_mutant_can_be_made_and_has_its_tests(capsys: pytest.CaptureFixture[str]) -> None:
    found = mutants.read_tables([], [])
    assert len(found) > 100
    unfit = []
    for mutant in found:
        try:
            mutant.applied((mutants.ROOT / "ekgsearch" / mutant.file).read_text())
        except SystemExit:
            unfit.append(capsys.readouterr().err)
        unfit += [f"{mutant.why}: no {test}" for test in mutant.tests if not (mutants.ROOT / test).exists()]
    assert unfit == []
