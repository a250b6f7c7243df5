"""The text encoder "phrases": colours bind to their nouns, and old studies keep theirs."""

import pytest
import torch

from bench.diffusion.model import ModelConfig
from bench.diffusion.phrases import PhraseEncoder, text_encoder
from bench.errors import InvalidInput, UnknownName, UnknownWord
from bench.studies import study

ENCODER = text_encoder("phrases", 16)


def test_a_colour_binds_to_its_own_noun() -> None:
    one, other = ENCODER.encode(["green hair, purple hat", "purple hair, green hat"])
    words = {"green": 1, "hair": 2, "purple": 3, "hat": 4}, {"purple": 1, "hair": 2, "green": 3, "hat": 4}
    for word, row in words[0].items():
        assert (one[row] - other[words[1][word]]).abs().max() > 0.3, word


def test_the_order_of_phrases_changes_the_order_of_states_alone() -> None:
    one, other = ENCODER.encode(["green hair, purple hat, smile", "smile, green hair, purple hat"])
    torch.testing.assert_close(one[[0, 1, 2, 3, 4, 5]], other[[0, 2, 3, 4, 5, 1]])


def test_states_follow_the_formula() -> None:
    def rms(vector: torch.Tensor) -> torch.Tensor:
        return vector / vector.pow(2).mean().sqrt()

    assert isinstance(ENCODER, PhraseEncoder)
    long, red, hair = (ENCODER.vectors[ENCODER.words[word]] for word in ("long", "red", "hair"))
    [states] = ENCODER.encode(["long red hair"])
    torch.testing.assert_close(states[1], rms(long + 0.7 * (red + hair) / 2))
    torch.testing.assert_close(states[0], rms(states[1:4].mean(0)))
    torch.testing.assert_close(states[4:], states[:1].expand(12, -1))


def test_the_empty_prompt_is_zero_and_empty_phrases_say_nothing() -> None:
    empty, one, same = ENCODER.encode(["", "red hat", " , red hat, "])
    assert not empty.any()
    torch.testing.assert_close(one, same)


def test_an_unknown_word_gets_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownWord, match=r"'purpel' \(nearest known: purple"):
        ENCODER.encode(["purpel hat"])


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInput, match="reads at most 15"):
        ENCODER.encode(["red, " * 16])


def test_every_caption_of_faces_is_read() -> None:
    dataset = study("faces").dataset
    assert ENCODER.encode(sorted(set(dataset.captions))).isfinite().all()


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'phrases'"):
        text_encoder("phrase", 8)


def test_studies_of_words_keep_their_digests() -> None:
    digests = {name: study(name).digest for name in ("fashion", "emoji", "tiny", "small")}
    assert digests == {
        "fashion": "585927e56a8cac50",
        "emoji": "7fa634f0efc32985",
        "tiny": "40a392032ce6e6f2",
        "small": "038c2071681edde0",
    }
    assert ModelConfig(sample_size=8, latent_channels=1, block_channels=(8,), cross_attention=(True,)).text_encoder == (
        "words"
    )
