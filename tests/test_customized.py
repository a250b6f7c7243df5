"""Customized models: exemplars that the base never saw, one pool, the model as unit, and a board that mixes nothing."""

import math
import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from bench.attribution import dimensions
from bench.data.customizations import HELD_OUT, NEW_WORD, OBJECT, REPORTED, STYLE, customizations
from bench.data.dataset import load_embedded
from bench.diffusion.fine_tuning import FineTuning, Start
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.errors import ResultsFolderError, UnknownName
from bench.experiments import customized
from bench.experiments.customized import CustomizedModel, CustomizedRun, CustomizedWorkspace
from bench.experiments.known_exemplars import ranking
from bench.experiments.retrieval import average_precision
from bench.experiments.workspace import Workspace
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records.store import Store
from bench.registry import methods, named
from bench.report.customized import (
    KEY,
    RetrievalRow,
    chance_of_precision,
    explained,
    merge,
    publish,
    summary,
    tables_of,
)
from bench.studies import study
from cli import main

LABELS = {"pixel": None, "random": None, "gone": None, "ours": False, "ours[damping=1.0]": True, "nda": True}
"""Whether a table calls it untuned; None where there is nothing to tune, or nobody who could say."""
METHODS = ("pixel", "random", "ours")
FEW = {"num_fisher_draws": 16, "num_gradient_draws": 8, "timestep_stride": 500}


@pytest.fixture(scope="module")
def quick():
    """The base, hardly trained."""
    whole = study("customized")
    return replace(whole, recipe=replace(whole.recipe, num_steps=3), sampler=replace(whole.sampler, num_steps=2))


def run_of(quick, root, **changes) -> CustomizedRun:
    chosen = [methods.create(name, "tiny", **(FEW if name == "ours" else {})) for name in METHODS]
    shared = {"study": quick, "methods": chosen, "results": root, "models": 2, "queries": 2, "distractors": 15}
    return CustomizedRun(**{**shared, "threads": 1, **changes})


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    root = tmp_path_factory.mktemp("customized")
    patch = pytest.MonkeyPatch()
    patch.setattr(customized, "STEPS", 2)
    yield root, run_of(quick, root).execute()
    patch.undo()


def test_there_are_twenty_reported_models_and_sixteen_others():
    reported, held_out = customizations(REPORTED), customizations(HELD_OUT)
    assert [each.kind for each in reported] == [OBJECT] * 10 + [STYLE] * 10
    assert [each.kind for each in held_out] == [OBJECT] * 8 + [STYLE] * 8
    for each in (*reported, *held_out):
        count = len(each.exemplars)
        assert count == 1 if each.kind == OBJECT else 4 <= count <= 12
        assert len(each.prompts) == 5
    with pytest.raises(UnknownName, match="held-out"):
        customizations("others")


def test_no_two_models_share_an_exemplar_and_the_base_saw_none():
    every = [each for split in (REPORTED, HELD_OUT) for each in customizations(split)]
    pictures = {each.name: {image.numpy().tobytes() for image in each.exemplars.images} for each in every}
    for one, other in combinations(every, 2):
        assert not pictures[one.name] & pictures[other.name]
        assert not set(one.exemplars.ids) & set(other.exemplars.ids)
    seen = {image.numpy().tobytes() for image in load_embedded("faces").images}
    assert not any(found & seen for found in pictures.values())


def test_every_prompt_and_caption_can_be_read():
    how = FineTuning(start=Start("none", Path("none")), word=NEW_WORD)
    encoder = how.with_word(DiffusionModel(study("customized").model)).text_encoder
    for split in (REPORTED, HELD_OUT):
        for each in customizations(split):
            encoder.encode([*each.prompts, *each.exemplars.captions])
            bare = [each.without_word(prompt) for prompt in each.prompts]
            assert all(bare)
            DiffusionModel(study("customized").model).text_encoder.encode(bare)


def test_exemplars_are_the_same_on_every_machine():
    digests = {each.name: each.exemplars.digest for each in customizations()}
    assert (digests["alien"], digests["sepia"], digests["framed"]) == (
        "a4c252aec4be1987",
        "2f80447dc42f5374",
        "6d8ca80aa5da2070",
    )


def test_a_run_ranks_the_exemplars_of_each_model(finished):
    root, report = finished
    frame = report.frame
    assert not report.failures
    assert not report.skipped
    assert set(frame["method"].str.extract(r"^(\w+)", expand=False)) == set(METHODS)
    assert list(dict.fromkeys(frame["kind"])) == [OBJECT, STYLE]
    assert len(frame) == 2 * 2 * len(METHODS)
    assert (frame["pool"] == 15 + frame["exemplars"]).all()
    assert frame["average_precision"].between(0, 1).all()
    kept = Store(root).frame(folder.RETRIEVAL)
    pd.testing.assert_frame_equal(kept, frame)


def test_the_fisher_is_that_of_the_base_and_computed_once(finished):
    root, _ = finished
    assert len(list((root / "cache").glob("fisher-*"))) == 1
    assert not list((root / "customized").glob("*/cache/fisher-*"))
    assert len(list((root / "customized").glob("*/cache/losses-*"))) == 2


def test_a_method_sees_the_base_and_no_training_that_it_could_do_again(finished, quick):
    root, _ = finished
    base = Workspace(quick, root, metrics=())
    home = CustomizedWorkspace(base, customizations()[0], 15, device="cpu", progress=Progress())
    context = home.context()
    assert context.base.dataset.digest == quick.dataset.digest
    assert context.model.text_encoder.learned
    assert not context.base.model.text_encoder.learned
    assert not context.trainings
    assert set(context.base.trainings) == {"original", "judge"}


def test_a_rerun_computes_nothing_and_gives_the_same_rows(finished, quick, monkeypatch):
    root, report = finished
    monkeypatch.setattr("bench.diffusion.training.TrainingRun.advance", lambda self: pytest.fail("it trained"))
    monkeypatch.setattr("bench.experiments.scoring.checked_scores", lambda *given: pytest.fail("it scored"))
    pd.testing.assert_frame_equal(run_of(quick, root).execute().frame, report.frame)


def test_without_the_word_a_method_sees_the_rest_of_the_prompt(finished, quick):
    root, _ = finished
    chosen = [methods.create("same_caption")]
    run_of(quick, root, methods=chosen, models=1).execute()
    found = run_of(quick, root, methods=chosen, models=1, without_word=True).execute().frame
    assert not found["prompt"].str.contains("V*", regex=False).any()
    rows = Store(root).frame(folder.RETRIEVAL)
    best = rows[rows["method"] == "same_caption"].groupby("with_word")["average_precision"].mean()
    assert best[True] > best[False]
    assert "same_caption (without V*)" in set(summary(rows)["method"])


def test_a_board_shows_every_model_and_mixes_no_pools(finished, quick, tmp_path):
    root, report = finished
    board = publish(quick, [root], tmp_path / "board")
    assert not board.remarks
    manifest = Store(tmp_path / "board").record(folder.MANIFEST)
    assert set(manifest["methods"]) >= set(report.frame["method"])
    assert manifest["runs"][0]["distractors"] == 15
    table = pd.read_csv(tmp_path / "board" / folder.BOARD_CSV)
    assert {"recall_at_10", "map", "chance", "ceiling", "pool"} <= set(table.columns)
    page = (tmp_path / "board" / folder.BOARD_PAGE).read_text()
    assert page.count("data:image/png") == 2
    text = (tmp_path / "board" / folder.BOARD_TABLE).read_text()
    for name in ("alien", "inverted"):
        assert f"figures/{name}.png" in text
        picture = tmp_path / "board" / "figures" / f"{name}.png"
        assert picture.stat().st_size > 1000
        with Image.open(picture) as drawn:
            assert drawn.mode == "P"  # of a palette: twenty stand in one page
    other = tmp_path / "other"
    shutil.copytree(root / "models", other / "models")
    run_of(quick, other, methods=[methods.create("pixel")], models=1, distractors=10).execute()
    with pytest.raises(ResultsFolderError, match="several versions of the models alien"):
        publish(quick, [root, other], tmp_path / "mixed")
    with pytest.raises(ResultsFolderError, match="There are no runs of study"):
        publish(quick, [], tmp_path / "mixed")
    with pytest.raises(ResultsFolderError, match="no retrieval"):
        publish(quick, [tmp_path / "nothing"], tmp_path / "mixed")
    with pytest.raises(ResultsFolderError, match="another version"):
        publish(replace(quick, seed=1), [root], tmp_path / "mixed")


def test_a_board_keeps_its_rows_and_pictures_when_a_run_is_merged_in(finished, quick, tmp_path):
    root, _ = finished
    target = tmp_path / "board"
    publish(quick, [root], target)
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    before = {path: path.read_bytes() for path in files}
    again = publish(quick, [], target)  # a clone holds the board alone
    assert {path: path.read_bytes() for path in files} == before
    assert again.remarks == (
        "pictures that stay as they were of alien, inverted: the queries are in none of the folders",
    )
    more = tmp_path / "more"
    shutil.copytree(root / "models", more / "models")
    run_of(quick, more, methods=[methods.create("same_caption")], models=1, without_word=True).execute()
    publish(quick, [more], target)
    lines = pd.read_csv(target / folder.BOARD_CSV)["method"]
    assert set(lines) == {*summary(again.frame)["method"], "same_caption (without V*)"}


POOLED = ("pixel", "random", "ours", "same_caption", "trak")
SEPARATE = {"pixel", "ours"}
"""Whose score of an image says nothing of the others; ``same_caption`` gives ranks, ``trak`` has a kernel."""


@pytest.fixture(scope="module")
def pooled(finished, quick):
    """The same models among 6 of their 15 distractors."""
    root, _ = finished
    given = {
        "ours": {**FEW, "weights": "all", "query_rise": 0.1},
        "trak": {"projection_dim": 8, "num_timesteps": 1, "num_query_draws": 2},
    }
    chosen = [methods.create(name, "tiny", **given.get(name, {})) for name in POOLED]
    before = Store(root).frame(folder.RETRIEVAL)
    found = {pool: run_of(quick, root, methods=chosen, pool=pool).execute() for pool in (6, None)}
    return before, chosen, found


def test_a_smaller_pool_has_all_exemplars_and_the_same_distractors_for_all(finished, quick, pooled):
    root, _ = finished
    base = Workspace(quick, root, metrics=())
    seen = {}
    for each in (customizations()[0], customizations()[10]):
        homes = {
            pool: CustomizedWorkspace(base, each, 15, pool=pool, device="cpu", progress=Progress())
            for pool in (None, 15, 6, 5)
        }
        pools = {pool: homes[pool].pool.ids for pool in homes}
        assert pools[15] == pools[None] == homes[6].study.dataset.ids
        assert pools[6][6:] == each.exemplars.ids
        assert set(pools[5]) < set(pools[6]) < set(pools[None])
        assert homes[6].study.digest == homes[None].study.digest
        context, whole = homes[6].context(), homes[None].context()
        rows = [whole.dataset.ids.index(image) for image in pools[6]]
        assert context.dataset.ids == pools[6]
        assert torch.equal(context.data.latents, whole.data.latents[rows])
        for image, row in enumerate(rows):
            assert context.dataset.captions[image] == whole.dataset.captions[row]
            own, known = context.data.states_of(torch.tensor([image])), whole.data.states_of(torch.tensor([row]))
            assert torch.equal(own, known)
        seen[each.name] = pools[6][:6]
    assert len(set(seen.values())) == 2


def test_a_pool_has_rows_of_its_own_and_leaves_the_others_alone(finished, pooled):
    root, report = finished
    before, _, found = pooled
    after = Store(root).frame(folder.RETRIEVAL)
    full = after[after["pool"] - after["exemplars"] == 15]
    same = full.merge(before[KEY], on=KEY).sort_values(KEY, ignore_index=True)
    pd.testing.assert_frame_equal(same, before.sort_values(KEY, ignore_index=True))
    frame = found[6].frame
    assert not found[6].failures
    assert len(frame) == 2 * 2 * len(POOLED)
    assert (frame["pool"] == 6 + frame["exemplars"]).all()
    assert set(frame["model_digest"]) == set(report.frame["model_digest"])
    assert set(summary(after)["distractors"]) == {15, 6}


def test_a_score_does_not_depend_on_the_pool_unless_the_method_compares_images(finished, quick, pooled):
    root, _ = finished
    base = Workspace(quick, root, metrics=())
    for each in (customizations()[0], customizations()[10]):
        whole, part = (
            CustomizedWorkspace(base, each, 15, pool=pool, device="cpu", progress=Progress()) for pool in (None, 6)
        )
        columns = [whole.pool.ids.index(image) for image in part.pool.ids]
        for method in pooled[1]:
            queries = whole.asked(2)
            among, restricted = part.scores(method, queries).matrix, whole.scores(method, queries).matrix[:, columns]
            if method.name in SEPARATE:
                few = 0.005 * float(restricted.abs().max())  # the step that raises a loss is found to 1/500
                torch.testing.assert_close(among, restricted, rtol=0.005, atol=few)
            else:
                assert not torch.allclose(among, restricted)


def test_gradients_of_a_pool_are_those_of_its_images_alone(finished, quick, pooled):
    root, _ = finished
    [kept] = (root / "customized" / "alien" / "pools" / "6" / "cache").glob("gradient-features-*")
    assert load_file(kept)["features"].shape[:2] == (7, 2)


def test_a_run_tells_which_projection_was_chosen_on_each_model(finished, quick, monkeypatch):
    root, _ = finished
    auto = methods.create("trak:auto", "tiny", num_timesteps=1, num_query_draws=2)
    given = {"methods": [auto], "queries": 1, "distractors": 15}
    told = [note for note in run_of(quick, root, pool=6, **given).execute().notes() if note.startswith("trak")]
    assert told == [
        f"{named(auto, 'faces').label}: nothing is projected on 2 models: the gradients of all images fit the memory"
    ]
    monkeypatch.setattr(dimensions, "LEAST", 5)
    monkeypatch.setattr(dimensions, "DIMENSIONS", (2, 4))
    monkeypatch.setattr(dimensions, "PROBES", 2)
    monkeypatch.setattr(dimensions, "EXACT_BYTES", dimensions.feature_bytes(8, 194_611))
    [note] = [note for note in run_of(quick, root, **given).execute().notes() if note.startswith("trak")]
    assert re.search(
        r": 4 dimensions on 2 models, with no projection's ranks to a Spearman's ρ of -?0\.\d\d or more$", note
    )


def test_a_run_whose_methods_were_all_skipped_says_why_and_has_no_table(finished, quick):
    root, _ = finished
    found = run_of(quick, root, methods=[methods.create("retrac", "tiny")], models=1).execute()
    assert found.tables() == []
    assert found.problems() == ["every method was skipped; see the reasons above."]
    assert any(re.match(r"skipped retrac.*: how the model was trained is not known", note) for note in found.notes())


def row(**given) -> RetrievalRow:
    usual = {
        "study": "s", "study_digest": "d", "model": "a", "model_digest": "a", "kind": OBJECT, "split": REPORTED,
        "method": "m", "method_digest": "m", "settings": "{}", "query": "q", "query_digest": "q", "prompt": "",
        "with_word": True, "exemplars": 1, "pool": 100, "recall_at_10": 0.0, "average_precision": 0.0, "top": "[]",
        "score_seconds": 1.0,
    }  # fmt: skip
    return RetrievalRow(**{**usual, **given})


def test_the_model_is_the_unit_of_means_and_errors():
    rows = [row(model="a", query=f"q{n}", query_digest=f"a{n}", average_precision=1.0) for n in range(9)]
    rows += [row(model="b", query_digest="b", average_precision=0.0)]
    style = {"model": "c", "kind": STYLE, "query_digest": "c", "exemplars": 20, "pool": 119}
    rows += [row(**style, recall_at_10=0.5, average_precision=0.25)]
    found = summary(pd.DataFrame(rows)).set_index("group")
    assert found.loc[OBJECT, "map"] == 0.5
    assert found.loc[OBJECT, "map_se"] == pytest.approx(0.5)
    assert found.loc[STYLE, "ceiling"] == 0.5
    assert found.loc["all", "ceiling"] == pytest.approx(2.5 / 3)
    assert found.loc["all", "chance"] == pytest.approx((0.1 + 0.1 + 10 / 119) / 3)
    assert math.isnan(found.loc[STYLE, "map_se"])


def test_pools_of_different_sizes_stand_in_tables_of_their_own():
    big = [row(model=name, query_digest=name, average_precision=1.0, pool=1001) for name in "ab"]
    small = [row(model=name, query_digest=name, average_precision=0.5, pool=51) for name in "ab"]
    frame = pd.DataFrame([*small, *big])
    found = summary(frame)
    assert found[found["group"] == "all"]["distractors"].tolist() == [1000, 50]
    assert found[found["group"] == "all"]["map"].tolist() == [1.0, 0.5]
    assert found["chance"].tolist() == pytest.approx([10 / 1001] * 2 + [10 / 51] * 2)
    tables = tables_of(found)
    for (head, lines), size in zip(tables, (1000, 50), strict=True):
        assert all(len(line) == len(head) for line in lines)
        assert [line[0] for line in lines] == ["m", "chance", "ceiling"]
        assert {line[head.index("distractors")] for line in lines} == {str(size)}
    texts = explained(frame)
    assert all(f"among {size} distractors" in text for size, text in zip((1000, 50), texts, strict=True))


def test_methods_that_answered_unequal_queries_are_compared_on_those_that_all_answered():
    def rows_of(method, models, queries, values):
        return [
            row(
                model=model,
                method=method,
                method_digest=method,
                query=query,
                query_digest=query,
                average_precision=value,
            )
            for model in models
            for query, value in zip(queries, values, strict=True)
        ]

    equal = [*rows_of("one", "ab", ["q0"], [0.4]), *rows_of("two", "ab", ["q0"], [0.6])]
    more = [*rows_of("two", "ab", ["q1"], [0.0]), *rows_of("few", "a", ["q1"], [1.0])]
    [(head, _)] = tables_of(summary(pd.DataFrame(equal)))
    assert head[-1] == "s/query"
    found = summary(pd.DataFrame([*equal, *more]))
    whole = found[found["group"] == "all"].set_index("method")
    assert whole["map"].to_dict() == pytest.approx({"one": 0.4, "two": 0.3, "few": 1.0})
    assert whole["map_shared"].dropna().to_dict() == pytest.approx({"one": 0.4, "two": 0.6})
    [(head, lines)] = tables_of(found)
    assert head[-1] == "same 2 queries: mAP"
    assert {line[0]: line[-1] for line in lines} == {
        "one": "0.400",
        "two": "0.600",
        "few": "–",
        "chance": "",
        "ceiling": "",
    }
    assert all(len(line) == len(head) for line in lines)


def test_the_chance_of_precision_is_the_mean_over_all_orders():
    for exemplars, pool in ((1, 2), (2, 5), (3, 6)):
        every = [
            average_precision([str(place) for place in range(pool)], [str(place) for place in places])
            for places in combinations(range(pool), exemplars)
        ]
        assert chance_of_precision(exemplars, pool) == pytest.approx(sum(every) / len(every))


def test_tables_say_whose_settings_were_tuned():
    rows = [row(study="customized", method=name, method_digest=name, query_digest=name) for name in LABELS]
    found = summary(pd.DataFrame(rows)).drop_duplicates("method").set_index("method")["tuned_on"]
    assert found["ours[damping=1.0]"] == "given: damping=1.0; the others as tuned"
    not_tuned = {name: text.startswith("not tuned") if text else None for name, text in found.items()}
    assert not_tuned == LABELS | {"ours[damping=1.0]": False}
    [(head, lines)] = tables_of(summary(pd.DataFrame(rows)))
    shown = {line[0]: line[head.index("settings")] for line in lines[: len(LABELS)]}
    assert shown == {name: {None: "", True: "untuned", False: "tuned"}[untuned] for name, untuned in LABELS.items()}


def test_rows_are_replaced_not_repeated(tmp_path):
    store = Store(tmp_path)
    merge(store, [row(), row(query_digest="other")])
    whole = merge(store, [row(recall_at_10=1.0)])
    assert sorted(whole["recall_at_10"]) == [0.0, 1.0]


def test_equal_scores_give_exemplars_no_advantage(quick):
    dataset = load_embedded("faces").only(range(99)).and_then(customizations()[0].exemplars)
    noise, places = torch.zeros(3, 16, 16), []
    for number in range(60):
        query = Query("q", "smile", number, noise, noise, quick.sampler)
        ranks = ranking(torch.zeros(100), dataset, query)
        assert sorted(ranks) == sorted(dataset.ids)
        places.append(ranks.index("alien-00"))
    assert 30 < sum(places) / 60 < 70
    scores = torch.arange(100.0)
    assert ranking(scores, dataset, query) == list(reversed(dataset.ids))


def test_a_customized_model_is_a_study_of_its_own(quick):
    given = dict.fromkeys(("customization",), "alien")
    model = CustomizedModel(
        **{name: getattr(quick, name) for name in quick.__dataclass_fields__}, **given, distractors=("face-train-0001",)
    )
    assert model.dataset.ids == ("face-train-0001", "alien-00")
    assert model.dataset.captions[-1] == "V*"
    assert model.digest != quick.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--study", "customized", "--method", "pixel", "--models", "21"], "--models 21"),
        (["run", "--study", "customized", "--method", "pixel", "--models", "0"], "--models 0"),
        (["run", "--study", "customized", "--method", "pixel", "--queries", "21"], "--queries 21"),
        (["run", "--study", "customized", "--method", "pixel", "--distractors", "9999"], "--distractors 9999"),
        (["run", "--study", "customized", "--method", "pixel", "--pool", "0"], "--pool 0"),
        (["run", "--study", "customized", "--method", "pixel", "--pool", "1001"], "--pool 1001"),
        (["run", "--study", "abc", "--method", "pixel", "--pool", "5"], "retrains nothing"),
        (["run", "--study", "tiny", "--method", "pixel", "--pool", "5"], "--pool: for --study customized"),
        (["run", "--study", "customized", "--method", "pixel", "--k", "5"], "retrains nothing"),
        (["run", "--study", "customized", "--method", "pixel", "--dry-run"], "--dry-run"),
        (["run", "--study", "tiny", "--method", "pixel", "--held-out"], "--held-out: for --study customized"),
        (["lds", "--study", "customized", "--method", "pixel"], "bench leaderboard"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    result = CliRunner().invoke(main, [*arguments, "--results", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.output
