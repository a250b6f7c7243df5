"""The command: what it prints, and that bad input ends with one clear line and exit code 2."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.diffusion.text import embedded_encoder
from bench.errors import InvalidInput, UnknownName, UnknownWord
from bench.foundation.machine import command_line
from bench.registry import Registry, methods
from bench.studies import study
from cli import main

RUN = ["run", "--study", "tiny", "--method", "pixel"]


def bench(*arguments: str):
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_list_names_every_plugin():
    result = bench("list")
    assert result.exit_code == 0
    for name in ("fashion", "emoji", "tiny", "ours", "pixel", "random", "loss_change", "regeneration_mse"):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--study", "fashon", "--method", "ours"], "no study 'fashon'. Did you mean 'fashion'?"),
        (["run", "--study", "tiny", "--method", "our"], "no method 'our'. Did you mean 'ours'?"),
        ([*RUN, "--metric", "loss_chnge"], "no metric 'loss_chnge'. Did you mean 'loss_change'?"),
        ([*RUN, "--k", "0"], "K = 0 images cannot be removed"),
        ([*RUN, "--k", "200"], "give --k between 1 and 199"),
        ([*RUN, "--queries", "0"], "--queries 0"),
        ([*RUN, "--queries", "1000"], "give 1 to"),
        ([*RUN, "--workers", "0"], "workers = 0"),
        ([*RUN, "--device", "cuda:99"], "--device cuda:99"),
        ([*RUN, "--device", "toaster"], "--device toaster"),
        ([*RUN, "--set", "pixel.colour=1"], "no setting of method 'pixel' 'colour'"),
        ([*RUN, "--set", "colour"], "is not of the form"),
        ([*RUN, "--set", "ours.damping=1"], "expected METHOD.SETTING=VALUE"),
        (
            ["run", "--study", "tiny", "--method", "ours", "--set", "ours.fisher=full"],
            "expected diagonal or none",
        ),
        (
            ["run", "--study", "tiny", "--method", "ours", "--set", "ours.weights=kv"],
            "no selection of weights 'kv'",
        ),
        (["tune", "--study", "tiny", "--method", "ours", "--grid", "step_size"], "is not of the form"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    result = bench(*arguments, "--results", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_unknown_word_is_named_with_the_nearest_known_ones():
    with pytest.raises(UnknownWord, match=r"'snaeker' \(nearest known: sneaker"):
        embedded_encoder(8).encode(["a photo of a snaeker"])


def test_attribute_refuses_an_unknown_word_before_any_work(tmp_path):
    result = bench("attribute", "--study", "tiny", "--method", "pixel", "--prompt", "a photo of a qwrtz",
                   "--results", str(tmp_path))  # fmt: skip
    assert result.exit_code == 2
    assert "'qwrtz'" in result.output
    assert not (tmp_path / "models").exists()


def test_a_phrase_with_an_unknown_word_brings_the_captions_phrases_of_its_noun(tmp_path):
    asked = "dark skin, pink hat, smile, mint background"
    result = bench("attribute", "--method", "pixel", "--prompt", asked, "--results", str(tmp_path))
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "For 'mint background' captions have: blue background, " in said
    assert "lilac background" in said
    assert "'pink hat'" not in said


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_results_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = bench(*RUN, "--results", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "is a file" in result.output


def test_a_read_only_results_folder_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = bench(*RUN, "--results", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert "not writable" in result.output


def test_a_results_folder_of_another_study_is_refused(tmp_path):
    assert bench(*RUN, "--dry-run", "--results", str(tmp_path)).exit_code == 0
    result = bench(
        "run", "--study", "tiny", "--seed", "1", "--method", "pixel", "--dry-run", "--results", str(tmp_path)
    )
    assert result.exit_code == 2
    assert "They differ in: seed" in result.output


def test_a_dry_run_tells_trainings_time_and_disk(tmp_path):
    result = bench(*RUN, "--dry-run", "--results", str(tmp_path))
    assert result.exit_code == 0
    assert re.search(r"retrainings: 20 asked, 20 models .*\n.*0 cached, 0 to observe only, 20 to train", result.output)
    assert re.search(r"time here .*: about \d+", result.output)
    assert "MiB of models" in result.output


def test_attribute_writes_a_contact_sheet(tmp_path):
    result = bench("attribute", "--study", "tiny", "--method", "pixel", "--prompt", "a photo of a bag",
                   "--top", "5", "--results", str(tmp_path))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "fashion-train-" in result.output
    assert len(list((tmp_path / "attributions").glob("*.png"))) == 1
    assert len((next((tmp_path / "attributions").glob("*.csv"))).read_text().splitlines()) == 6


ATTRIBUTE = ["attribute", "--study", "tiny", "--method", "pixel", "--prompt", "a photo of a bag"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ATTRIBUTE, "--box", "3,3,3,9"], "The box 3,3,3,9 is empty"),
        ([*ATTRIBUTE, "--box", "0,0,15,4"], "lies outside the image: the images have 14 × 14 pixels"),
        ([*ATTRIBUTE, "--box", "-1,0,4,4"], "lies outside the image"),
        ([*ATTRIBUTE, "--box", "1,2,3"], "'1,2,3' is no box: X0,Y0,X1,Y1 is expected"),
        ([*ATTRIBUTE, "--box", ""], "'' is no box"),
        ([*ATTRIBUTE, "--box", "hat"], "The parts of the images of 'tiny' are not known"),
        ([*ATTRIBUTE, "--method", "random", "--box", "0,0,5,5"], "random has no regions"),
        ([*ATTRIBUTE, "--map"], "pixel does not tell where in an image (with maps: ours, ours_ekfac)"),
        (["attribute", "--method", "pixel", "--prompt", "smile", "--box", "hut"], "or a part: backdrop, background"),
    ],
)
def test_a_bad_box_is_one_clear_line(tmp_path, arguments, message):
    result = bench(*arguments, "--results", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "models").exists()


def test_a_box_has_a_sheet_of_its_own(tmp_path):
    for box in (["--box", "0,0,14,7"], ["--box", "0,7,14,14"], []):
        result = bench(*ATTRIBUTE, *box, "--top", "3", "--results", str(tmp_path))
        assert result.exit_code == 0, result.output
    tops = {path.read_text() for path in (tmp_path / "attributions").glob("*.csv")}
    assert len(tops) == 3


def test_sheets_of_two_settings_stand_side_by_side(tmp_path):
    for draw in ("0", "1"):
        result = bench("attribute", "--study", "tiny", "--method", "random", "--set", f"random.draw={draw}",
                       "--prompt", "a photo of a bag", "--results", str(tmp_path))  # fmt: skip
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "attributions").glob("*.png"))) == 2


def test_tuning_uses_held_out_queries_and_keeps_them_apart(tmp_path):
    result = bench("tune", "--study", "tiny", "--method", "ours", "--grid", "step_size=0.05,0.1", "--queries", "1",
                   "--results", str(tmp_path))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "best: " in result.output
    assert "1 held-out queries of tiny" in result.output
    assert (tmp_path / "tuning" / "results.parquet").exists()
    assert not (tmp_path / "results.parquet").exists()


def test_held_out_queries_are_none_of_the_reported():

    whole = study("fashion")
    reported = {(spec.prompt, spec.seed) for spec in whole.queries(len(whole.prompts))}
    held_out = {(spec.prompt, spec.seed) for spec in whole.held_out_queries(len(whole.held_out_prompts))}
    assert not reported & held_out


def test_a_taken_name_is_refused():
    class Impostor(methods.get("pixel")):
        pass

    Impostor.__module__ = "somewhere.else"
    with pytest.raises(InvalidInput, match=r"taken by methods\.pixel"):
        methods.register(Impostor)


def test_an_unknown_name_lists_all():
    empty: Registry = Registry("method", "no.such.group")
    with pytest.raises(UnknownName, match="Known: none"):
        empty.get("x")


def test_an_interruption_before_the_command_is_no_failure(monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(main), "make_context", interrupted)
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 75
    assert "interrupted" in done.output


def test_records_tell_a_command_without_the_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "inside"
    given = ["run", "--study", f"{home}/mine.toml", "--results=/home/somebody/secret", "--prompt", "a hat", "--k", "5"]
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/bench", *given])
    assert command_line() == "bench run --study inside/mine.toml --results=secret --prompt 'a hat' --k 5"
