"""Data sets and a pretrained pipeline made on the spot, as a user would bring them."""

import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

COLOURS = {"crimson": (220, 20, 60), "teal": (0, 128, 128), "ochre": (204, 119, 34), "indigo": (75, 0, 130)}
SHAPES = ("disc", "square", "cross")


def drawn(count, size=20, seed=0):
    """(image, caption) pairs: a coloured shape on another colour."""
    chance = random.Random(seed)
    for _ in range(count):
        front, back = chance.sample(sorted(COLOURS), 2)
        shape, shift = chance.choice(SHAPES), chance.randint(-2, 2)
        image = Image.new("RGB", (size, size), COLOURS[back])
        pen, middle = ImageDraw.Draw(image), size // 2
        box = (5 + shift, 5, size - 6 + shift, size - 6)
        if shape == "disc":
            pen.ellipse(box, fill=COLOURS[front])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[front])
        else:
            pen.rectangle((middle - 2 + shift, 3, middle + 1 + shift, size - 4), fill=COLOURS[front])
            pen.rectangle((3 + shift, middle - 2, size - 4 + shift, middle + 1), fill=COLOURS[front])
        yield image, f"{front} {shape}, {back} ground"


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(place, count=300, **how):
    """PNG files with metadata.jsonl."""
    place.mkdir(parents=True)
    lines = []
    for number, (image, caption) in enumerate(drawn(count, **how)):
        image.save(place / f"{number:03d}.png")
        lines.append(json.dumps({"file_name": f"{number:03d}.png", "text": caption}))
    (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return place


def web_dataset(place, count=300, shards=2):
    """The same as tar shards."""
    place.mkdir(parents=True)
    every = list(drawn(count))
    for shard in range(shards):
        with tarfile.open(place / f"{shard:03d}.tar", "w") as archive:
            for number in range(shard * count // shards, (shard + 1) * count // shards):
                image, caption = every[number]
                for suffix, content in (("png", png(image)), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return place


def parquet(place, count=300):
    """The same as one parquet file with image bytes."""
    place.mkdir(parents=True)
    rows = [
        {"image": {"bytes": png(image), "path": None}, "caption": caption, "id": f"{number:03d}"}
        for number, (image, caption) in enumerate(drawn(count))
    ]
    pq.write_table(pa.Table.from_pylist(rows), place / "part-0.parquet")
    return place


def pipeline(place, *, seed=0, unet=None, scheduler=None, text_dim=32, tokens=16, levels=2):
    """A tiny Stable Diffusion, with random weights, saved by diffusers: images of 16×16 pixels, latents of 8×8.

    Args:
        text_dim, tokens: of a text state.
        levels: of the autoencoder, each but the first of which halves the image.
    """
    place.mkdir(parents=True)
    torch.manual_seed(seed)
    text = tokenizer(place.parent / f"{place.name}-words", tokens)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8,) * levels, norm_num_groups=4, latent_channels=4, sample_size=16, scaling_factor=0.5,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(text), hidden_size=text_dim, intermediate_size=37, num_attention_heads=4,
                num_hidden_layers=2, max_position_embeddings=tokens, bos_token_id=text.bos_token_id,
                eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
            )
        ),
        tokenizer=text,
        unet=UNet2DConditionModel(
            **{
                "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
                "block_out_channels": (16, 32), "norm_num_groups": 8, "cross_attention_dim": text_dim,
                "attention_head_dim": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            }
            | (unet or {})
        ),
        scheduler=DDIMScheduler(
            **{
                "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
                "steps_offset": 1,
            }
            | (scheduler or {})
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(place)  # fmt: skip
    return place


def tokenizer(place: Path, tokens=16):
    """A CLIP tokenizer of single letters and a few merges, from files written here."""
    place.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = ["d i", "s c</w>", "c r", "t e"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), ",", ",</w>", *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=tokens)


def coco(home, count=64, captions=(5, 6)):
    """COCO as it is distributed: a folder of images and a file of captions, so many of each image in turn.

    The order is that of the file, not of the ids; captions of an image do not stand together.
    """
    (home / "train2017").mkdir(parents=True)
    images, said = [], []
    for number, (image, caption) in enumerate(drawn(count, size=40)):
        key = 100_000 - 7 * number
        image.resize((48, 40)).save(home / "train2017" / f"{key:012d}.jpg")
        images.append({"id": key, "file_name": f"{key:012d}.jpg"})
        front = caption.split()[0]
        texts = [caption, f"a {front} thing", f"{front}", f"{front} on it", f"it is {front}", "the sixth"]
        said += [(place, key, text) for place, text in enumerate(texts[: captions[number % len(captions)]])]
    annotations = [
        {"image_id": key, "id": number, "caption": f"{text}\n"}
        for number, (_, key, text) in enumerate(sorted(said, key=lambda each: (each[0], -each[1])))
    ]
    (home / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return home


def edited(file, *changes):
    """``file`` with each text in it that a change names first turned into the second."""
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file
