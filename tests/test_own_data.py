"""A study of one's own: from a folder of captioned images to a table, a picture and the other commands."""

import json
import shutil
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("datasets")
import own

from bench.authoring.checking import GLOBAL_STATES
from bench.data import prepared
from bench.data.encoded import encode, opened
from bench.data.prepared import Prepared, Survey
from bench.data.source_files import Source
from bench.diffusion.hashed import HashedEncoder
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments import heads
from bench.experiments.workspace import Workspace
from bench.retraining import plans
from bench.retraining.ledger import Request
from bench.studies import STUDIES, study
from cli import main

QUICK = [
    "--set", "ours.num_fisher_draws=32", "--set", "ours.num_gradient_draws=32", "--set", "ours.timestep_stride=500",
]  # fmt: skip


def bench(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of datasets and its file systems
        return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def shortened(file: Path) -> Path:
    """The study file with a recipe that takes a second."""
    return own.edited(file, ("num_steps = 1000", "num_steps = 12"), ("num_steps = 25", "num_steps = 3"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return own.image_folder(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def mine(folder):
    """The study file of the 300 pictures."""
    file = folder.parent / "mine.toml"
    result = bench("study", "new", file, "--data", folder)
    assert result.exit_code == 0, result.output
    assert "imagefolder: 300 images" in result.output
    assert "one training takes about" in result.output
    return shortened(file)


@pytest.fixture(scope="module")
def finished(mine):
    """A run of it, in a folder."""
    results = mine.parent / "results"
    result = bench(
        "run", "--study", mine, "--method", "ours", "--method", "pixel", "--queries", 1, "--k", 9, "--floor", "random",
        "--results", results, *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return results, result.output


def test_a_folder_becomes_a_table_and_a_picture(finished):
    results, output = finished
    for name in ("pixel", "random", "ours"):
        assert name in output
    assert (results / "table.md").exists()
    with Image.open(results / "figures" / "removals.png") as picture:
        assert picture.width > 300


def test_the_proposal_fits_the_data(mine):
    made = study(str(mine))
    assert (made.name, len(made.dataset), made.budgets) == ("mine", 300, (9, 24, 75))
    assert tuple(made.dataset.images.shape) == (300, 16, 16, 3)
    assert made.model.text_encoder == "hashed"  # crimson is no word that ships with the project
    captions = set(made.dataset.captions)
    assert set(made.prompts) | set(made.held_out_prompts) <= captions
    assert not set(made.prompts) & set(made.held_out_prompts)


PIXEL = ["--method", "pixel", "--queries", 1]
COMMANDS = {
    "run": [*PIXEL, "--k", 9, "--floor", "random"],
    "run --stack": [*PIXEL, "--k", 9, "--floor", "random", "--stack", 2, "--results", "{home}/stacked"],
    "work": ["--results", "{results}"],
    "plan": PIXEL,
    "plan --box": [*PIXEL, "--box", "0,0,8,8", "--box", "8,8,16,16"],
    "attribute": ["--method", "pixel", "--prompt", "a turquoise zeppelin", "--top", 3],
    "run --box": [*PIXEL, "--box", "0,0,8,8", "--box", "8,8,16,16", "--dry-run"],
    "localized": [*PIXEL, "--box", "0,0,8,8", "--box", "8,8,16,16", "--k", 9, "--floor", "random"],
    "verify": ["--results", "{results}", "--method", "pixel", "--query", "q00", "--k", 9],
    "reference": ["--models", 1, "--k", 9, "--queries", 2, "--dry-run"],
    "lds": [*PIXEL, "--subsets", 4, "--dry-run"],
    "groups": [*PIXEL, "--dry-run"],
    "projection": ["--method", "trak", "--queries", 1, "--images", 4, "--dry-run"],
    "reliability": PIXEL,
    "forgetting": ["--method", "ours", "--queries", 1, "--dry-run"],
    "queries export": ["{home}/exported", "--queries", 1],
    "tune": ["--method", "ours", "--grid", "step_size=0.01", "--queries", 1, "--k", 9, "--dry-run"],
    "check": ["random", "--results", "{home}/checked"],
    "train-heads": ["--backbone", "pixel", "--teacher", "pixel", "--queries", 8, "--out", "{home}/head.safetensors"],
    "leaderboard": ["--from", "{results}", "--results", "{home}/board"],
    "submit": ["--results", "{results}", "--method", "pixel", "--out", "{home}/sent", "--board", "{home}/none"],
    "season commit": ["{home}/season.json", "--queries", "{home}/asked.csv", "--secret", "{home}/secret.json",
                      "--closes", "2027-06-30"],
    "season reveal": ["{home}/season.json", "--secret", "{home}/secret.json"],
}  # fmt: skip
"""Of every command that takes --study, arguments for the user's own."""
REFUSED = {"localized": "carriers are counted in parts that are known"}
"""What cannot be done with a study of one's own, with what is said of it."""


def test_no_command_with_a_study_is_forgotten():
    found = {words for words, command in commands(main) if any(each.name == "study_name" for each in command.params)}
    assert found == {name.partition(" --")[0] for name in COMMANDS}


def commands(group, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_file(mine, finished, name, monkeypatch):
    monkeypatch.delitem(GLOBAL_STATES, "random")  # the shape checks of the tests draw from it
    train = heads.train_ranker
    monkeypatch.setattr(heads, "train_ranker", lambda *given, **named: train(*given, **{**named, "steps": 20}))
    results, _ = finished
    home = results.parent / "commands"
    home.mkdir(exist_ok=True)
    (home / "asked.csv").write_text("prompt,seed\nteal disc,4711\n")
    words = [str(each).format(results=results, home=home) for each in COMMANDS[name]]
    command = name.partition(" --")[0].split()
    takes = next(each for words, each in commands(main) if words == " ".join(command))
    if "--results" not in words and any(each.name == "results" for each in takes.params):
        words += ["--results", results]
    result = bench(*command, *words, "--study", mine)
    assert result.exit_code == (2 if name in REFUSED else 0), result.output
    assert REFUSED.get(name, "") in " ".join(result.output.split())


def test_a_worker_finds_the_study_file_or_is_told_where_it_lies(mine, tmp_path):
    """What `bench run --engine external` leaves for `bench work`, in another process: here, after the file moved."""
    place = tmp_path / "first"
    place.mkdir()
    shutil.copy(mine, place / "mine.toml")
    shutil.copytree(mine.with_suffix(".data"), place / "mine.data")
    file, moved = place / "mine.toml", tmp_path / "second" / "mine.toml"
    workspace = Workspace(study(str(file)), tmp_path / "run", metrics=[])
    jobs = [TrainingJob((index,), 1) for index in range(3)]
    plans.write(workspace.store, workspace.engine, [Request(job) for job in jobs])
    assert bench("work", "--results", tmp_path / "run", "--max-models", 1).exit_code == 75
    place.rename(moved.parent)
    refused = bench("work", "--results", tmp_path / "run")
    assert refused.exit_code == 2
    assert "bench work --study FILE.toml" in refused.output
    result = bench("work", "--results", tmp_path / "run", "--study", moved)
    assert result.exit_code == 0, result.output
    assert all(workspace.ledger.is_trained(job) for job in jobs)
    moved.write_text(moved.read_text().replace("num_steps = 12", "num_steps = 13"))
    plans.write(workspace.store, workspace.engine, [Request(TrainingJob((7,), 1))])
    refused = bench("work", "--results", tmp_path / "run", "--study", moved)
    assert (refused.exit_code, "use the same study file" in " ".join(refused.output.split())) == (2, True)


def test_tuned_settings_stay_with_the_study(mine, finished):
    """They are kept beside its file, not in the package, and the next run takes them."""
    how = ["--method", "ours", "--grid", "step_size=0.01,0.02", "--queries", 1, "--k", 9, "--save", *QUICK]
    result = bench("tune", "--study", mine, *how, "--results", finished[0])
    assert result.exit_code == 0, result.output
    kept = json.loads(mine.with_suffix(".tuned.json").read_text())
    assert list(kept["ours"]) == ["mine"]
    assert "mine" not in (Path(__file__).parents[1] / "methods" / "tuned.json").read_text()
    mine.with_suffix(".tuned.json").unlink()


def test_verify_doctor_and_leaderboard(mine, finished, tmp_path):
    results, _ = finished
    one = ["verify", "--results", results, "--method", "pixel", "--query", "q00", "--k", 9]
    assert "name its file with --study" in bench(*one).output
    result = bench(*one, "--study", mine)
    assert result.exit_code == 0, result.output
    assert "agrees" in result.output
    assert bench("doctor", results).exit_code == 0
    board = bench("leaderboard", "--study", mine, "--from", results, "--results", tmp_path / "board")
    assert board.exit_code == 0, board.output
    assert (tmp_path / "board" / "leaderboard.html").exists()


def test_shards_and_parquet_hold_the_same_data(folder, tmp_path):
    """All three formats of the same pictures prepare to the same pixels and captions."""
    expected = None
    for source in (folder, own.web_dataset(tmp_path / "shards"), own.parquet(tmp_path / "table")):
        wanted = Prepared(place=str(tmp_path / f"{source.name}.data"), source=Source(path=str(source)), size=16)
        found = prepared.prepare(wanted)
        pixels = found.images.numpy().tobytes()
        expected = expected or (found.captions, pixels)
        assert (found.captions, pixels) == expected
    run = bench("study", "new", tmp_path / "table.toml", "--data", tmp_path / "table", "--size", 8)
    assert run.exit_code == 0, run.output
    assert study(str(tmp_path / "table.toml")).dataset.ids[:2] == ("000", "001")


def test_class_folders_and_pictures_without_any_words(tmp_path):
    for number, (image, _) in enumerate(own.drawn(24)):
        place = tmp_path / "classes" / ("big_cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
        (tmp_path / "plain").mkdir(exist_ok=True)
        image.save(tmp_path / "plain" / f"{number}.png")
    for name, captions in (("classes", {"big cats", "dogs"}), ("plain", {""})):
        file = tmp_path / f"{name}.toml"
        result = bench("study", "new", file, "--data", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert set(study(str(file)).dataset.captions) == captions
    asked = ["--method", "pixel", "--prompt", "", "--top", 2, "--results", tmp_path / "results"]
    result = bench("attribute", "--study", shortened(tmp_path / "plain.toml"), *asked)
    assert result.exit_code == 0, result.output


def test_all_that_is_bad_is_told_at_once_and_may_be_left_out(tmp_path):
    place = own.image_folder(tmp_path / "bad", 20)
    lines = (place / "metadata.jsonl").read_text().splitlines()
    (place / "000.png").write_bytes(b"no picture")
    whole = (place / "001.png").read_bytes()
    (place / "001.png").write_bytes(whole[: len(whole) // 2])
    (place / "002.png").unlink()
    lines[3] = json.dumps({"file_name": "003.png", "text": "  "})
    lines.append(lines[4])
    next(own.drawn(1))[0].save(place / "stray.png")
    (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    file = tmp_path / "bad.toml"
    result = bench("study", "new", file, "--data", place)
    assert result.exit_code == 2
    assert not file.exists()
    assert "6 of 22 examples" in result.output
    for bad in ("000.png is no image", "001.png cannot be decoded", "002.png has no image", "003.png has no caption"):
        assert bad in result.output
    assert "004.png has an id that came before" in result.output
    assert "stray.png (not in the metadata) has no caption" in result.output
    again = bench("study", "new", file, "--data", place, "--skip-broken")
    assert again.exit_code == 0, again.output
    kept = study(str(file)).dataset
    assert (len(kept), len(set(kept.ids))) == (16, 16)
    assert "6 bad ones left out" in again.output


def test_colours_and_sizes_are_brought_to_one_kind(tmp_path):
    place = tmp_path / "kinds"
    place.mkdir()
    shades = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(shades).save(place / "deep.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(place / "glass.png")
    Image.new("RGB", (40, 16), (0, 255, 0)).save(place / "wide.png")
    Image.new("P", (16, 16)).save(place / "palette.gif")
    Image.new("CMYK", (8, 8)).save(place / "small.jpg")
    found = Survey.of(Source(path=str(place)))
    assert not found.problems
    told = " ".join(found.converted(16))
    for what in ("3 different sizes", "1 are not square", "1 have less", "1 have transparent", "1 have 16 bits"):
        assert what in told
    kept = prepared.prepare(Prepared(place=str(tmp_path / "out"), source=Source(path=str(place)), size=16))
    image = dict(zip(kept.ids, kept.images, strict=True))
    assert image["glass.png"].min() == 255
    assert torch.equal(image["deep.png"][..., 0], torch.from_numpy((shades >> 8).astype(np.uint8)))
    assert image["wide.png"].tolist() == [[[0, 255, 0]] * 16] * 16


def test_preparation_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "BLOCK", 50)
    wanted = Prepared(place=str(tmp_path / "out"), source=Source(path=str(folder)), size=16)
    decoded, real = [], prepared.square

    def square(example, *arguments, **named):
        decoded.append(example.id)
        if len(decoded) == 120:
            raise KeyboardInterrupt
        return real(example, *arguments, **named)

    monkeypatch.setattr(prepared, "square", square)
    with pytest.raises(KeyboardInterrupt):
        prepared.prepare(wanted)
    found = prepared.prepare(wanted)
    assert len(decoded) == 120 + 200  # 100 were kept
    monkeypatch.setattr(prepared, "square", real)
    assert found.digest == prepared.prepare(Prepared(place=str(tmp_path / "b"), source=wanted.source, size=16)).digest


def test_encoding_goes_on_where_it_was_interrupted(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.data.encoded.ENCODING_BATCH", 16)
    texts = HashedEncoder(8).encode
    encode(tmp_path / "whole", tiny.dataset, lambda images: images, texts)
    calls = []

    def images(pixels):
        calls.append(len(pixels))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return pixels

    told = []
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "part", tiny.dataset, images, texts)
    assert not (tmp_path / "part").exists()
    encode(tmp_path / "part", tiny.dataset, images, texts, lambda done, total: told.append((done, total)))
    assert len(calls) == 7 + 2 * (1 + 2)  # the first batch again, for the shape, then the 2 that lacked
    assert told[-1][0] == told[-1][1]
    for one, other in zip(opened(tmp_path / "whole")[:3], opened(tmp_path / "part")[:3], strict=True):
        assert torch.equal(one, other)


def test_a_study_follows_its_file_and_notices_other_data(folder, tmp_path):
    place = own.image_folder(tmp_path / "here" / "pictures", 12)
    file = tmp_path / "here" / "moves.toml"
    assert bench("study", "new", file, "--data", place).exit_code == 0
    before = study(str(file)).digest
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "moves.toml"
    assert study(str(moved)).digest == before
    prepared.shutil.rmtree(moved.with_suffix(".data"))
    assert study(str(moved)).digest == before  # prepared again
    prepared.shutil.rmtree(moved.with_suffix(".data"))
    next(own.drawn(1, seed=5))[0].save(tmp_path / "there" / "pictures" / "003.png")
    with pytest.raises(InvalidInput, match="have changed"):
        _ = study(str(moved)).digest


def test_any_word_has_a_vector_of_its_own_and_like_words_are_near():
    encoder = HashedEncoder(6)
    states = encoder.encode(["Zeppelin", "zeppelins", "ukulele", "", "красный дом", "red circle, blue ground"])
    assert torch.equal(states[3], torch.zeros_like(states[3]))
    assert torch.equal(states, HashedEncoder(6).encode(["zeppelin", "zeppelins", "ukulele", "", "красный дом",
                                                        "red circle, blue ground"]))  # fmt: skip
    near, far = (torch.cosine_similarity(states[0, 1], states[row, 1], dim=0) for row in (1, 2))
    assert near > 0.35 > abs(far)
    swapped = encoder.encode(["blue circle, red ground"])
    assert not torch.allclose(states[5].sum(0), swapped[0].sum(0), atol=1e-3)  # colours are bound to their nouns
    assert torch.allclose(states[[0, 1, 2, 4, 5]].square().mean(-1), torch.ones(5, 6), atol=1e-4)


def test_the_studies_that_ship_keep_their_digests():
    """What this module and that of one's own model added to a study leaves no trace in others."""
    known = {
        "faces": "580fb3a3946ea076",
        "fashion": "585927e56a8cac50",
        "emoji": "7fa634f0efc32985",
        "small": "038c2071681edde0",
        "tiny": "40a392032ce6e6f2",
    }
    assert {name: make().digest for name, make in STUDIES.items() if name in known} == known
