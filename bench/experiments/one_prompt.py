"""Who made this image possible? One prompt, one method, no retraining: the training images that mattered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.contracts import Method
from bench.data.captions import phrases_ending_alike
from bench.diffusion.phrases import text_encoder
from bench.diffusion.queries import QuerySpec
from bench.errors import InvalidInput, UnknownWord
from bench.experiments.experiment import LARGEST_SEED
from bench.experiments.scoring import check_regions
from bench.experiments.selection import top_k
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.foundation.machine import available_threads, compute_threads
from bench.records import folder
from bench.records.store import write_whole
from bench.registry import methods as registered
from bench.registry import named
from bench.report import figures
from bench.report.shown import Report, Table


@dataclass(frozen=True, eq=False)
class Attribution(Report):
    """The answer.

    Attributes:
        table: rank, id, caption and score of the top images.
        sheet: path of the contact sheet.
    """

    table: pd.DataFrame
    sheet: Path

    def tables(self) -> list[Table]:
        """Rank, id, caption and score of the images named."""
        lines = self.table.assign(score=self.table["score"].map("{:.6f}".format)).astype(str)
        return [(list(lines.columns), lines.to_numpy().tolist())]

    def notes(self) -> list[str]:
        """Where the picture lies."""
        return [f"contact sheet: {self.sheet}"]


def attribute(
    workspace: Workspace,
    method: Method,
    prompt: str,
    *,
    seed: int = 0,
    top: int = 16,
    threads: int | None = None,
    box: str | None = None,
    with_maps: bool = False,
) -> Attribution:
    """Generate ``prompt`` from the noise of ``seed`` and name the ``top`` training images responsible by ``method``.

    Where ``box`` is given (``Study.region``), those responsible for what is inside it. Where ``with_maps``, the sheet
    shows where in each image its score comes from. Writes a contact sheet and a CSV file into the folder
    ``attributions`` of the results folder.
    """
    dataset = workspace.study.dataset
    if abs(seed) > LARGEST_SEED:
        raise InvalidInput(f"--seed: a whole number of at most {LARGEST_SEED} is expected.")
    if not 0 < top <= len(dataset):
        raise InvalidInput(f"--top {top}: give a number between 1 and {len(dataset)}.")
    if not prompt.strip() and set(dataset.captions) != {""}:
        raise InvalidInput("--prompt is empty: say what to generate, such as 'a photo of a bag'.")
    try:
        text_encoder(workspace.study.model.text_encoder, workspace.study.model.num_tokens).tokens(prompt)
    except UnknownWord as error:
        alike = phrases_ending_alike(prompt, dataset.captions)
        said = "".join(f" For '{phrase}' captions have: {', '.join(known[:8])}." for phrase, known in alike.items())
        raise UnknownWord(f"{error}{said}") from None
    region = None if box is None else workspace.study.region(box)
    if region:
        check_regions(method)
    if with_maps and not method.has_maps:
        able = ", ".join(each.name for each in registered if each.has_maps)
        raise InvalidInput(f"--map: {method.name} does not tell where in an image (with maps: {able}).")
    method.prepare()
    with compute_threads(threads or available_threads()):
        [whole] = workspace.queries([QuerySpec(f"free-{digest_of([prompt, seed], 8)}", prompt, seed)])
        query = whole.within(region)
        scores = workspace.scores(method, [query]).matrix[0]
        chosen = list(top_k(scores, dataset.ids, top))
        maps = method.maps(workspace.context(), query, chosen) if with_maps else None
    table = pd.DataFrame(
        {
            "rank": range(1, top + 1),
            "id": [dataset.ids[index] for index in chosen],
            "caption": [dataset.captions[index] for index in chosen],
            "score": scores[chosen].numpy(),
        }
    )
    labels = [f"{rank}. {dataset.concepts[index]} {dataset.styles[index]}" for rank, index in enumerate(chosen, 1)]
    figure = figures.contact_sheet(
        workspace.images([query])[0],
        prompt,
        named(method, workspace.study.name).label,
        list(dataset.pixels(chosen)),
        labels,
        region=region,
        maps=maps,
    )
    asked = [prompt, seed, method.digest, *([region.box] if region else []), *(["maps"] if with_maps else [])]
    stem = f"{method.name}-{digest_of(asked, 8)}"
    sheet = workspace.store.path(*folder.sheet(stem))
    write_whole(sheet, figures.png(figure))
    write_whole(sheet.with_suffix(".csv"), table.to_csv(index=False).encode())
    return Attribution(table, sheet)
