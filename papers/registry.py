"""All papers: what reads their results, draws their figures and judges their claims."""

from types import ModuleType
from typing import NamedTuple

import papers.beyond.claims
import papers.beyond.figures
import papers.beyond.readings
import papers.chaotic_dynamics.claims
import papers.chaotic_dynamics.figures
import papers.chaotic_dynamics.readings
import papers.sparse_features.claims
import papers.sparse_features.figures
import papers.sparse_features.readings
import papers.stochastic_collapse.claims
import papers.stochastic_collapse.figures
import papers.stochastic_collapse.readings
from papers.claim import Claims
from papers.plots import Figure
from papers.result import Result


class Paper(NamedTuple):
    readings: ModuleType
    figures: ModuleType
    claims: ModuleType


PAPERS = (
    Paper(papers.stochastic_collapse.readings, papers.stochastic_collapse.figures, papers.stochastic_collapse.claims),
    Paper(papers.chaotic_dynamics.readings, papers.chaotic_dynamics.figures, papers.chaotic_dynamics.claims),
    Paper(papers.sparse_features.readings, papers.sparse_features.figures, papers.sparse_features.claims),
    Paper(papers.beyond.readings, papers.beyond.figures, papers.beyond.claims),
)
CLAIMS: list[Claims] = [paper.claims.claim for paper in PAPERS]
FIGURES: dict[str, Figure] = {name: figure for paper in PAPERS for name, figure in paper.figures.FIGURES.items()}


def reader(name: str):
    """The function that reads a result of this name, or None where no paper knows it."""
    for paper in PAPERS:
        found = paper.readings.reader(name)
        if found is not None:
            return found
    return None


def read(name: str, result: Result):
    """The reading of a result; raises ResultError where the file is damaged."""
    return reader(name)(result)


def belongs_to(figures: list[str], names: list[str]) -> set[str]:
    """Of these results, the ones that the figures or their claims need."""
    found = set()
    for name in figures:
        figure = FIGURES[name]
        found.update(figure.needs)
        if figure.matching is not None:
            found.update(result for result in names if figure.matching(result))
    for claims in CLAIMS:
        for claim in claims:
            if claim.figure in figures:
                cases = [claim.needs] if claim.each is None else claim.each(names)
                for needs in cases:
                    found.update(needs)
    return found & set(names)
