"""Scenes, their captions and their blemishes."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from curate.demo import blemishes, scenes
from curate.demo.train import CONFIG
from curate.models import WordTokenizer


def test_a_seed_gives_one_picture_and_one_caption() -> None:
    first, scene = scenes.render(7)
    again, same = scenes.render(7)
    other, different = scenes.render(8)
    assert first.tobytes() == again.tobytes()
    assert scene == same != different
    assert all(256 <= side <= 400 for side in first.size + other.size)


def test_golden_captions() -> None:
    """These change only if every trained weight and planted truth may change with them."""
    assert [scenes.compose(seed).caption for seed in range(3)] == [
        "an image showing four orange diamonds and 2 violet stars on a pink background",
        "a picture of one green diamond in the bottom right in front of a blue wall",
        "this is a black triangle on a red background",
    ]


def test_captions_name_every_group_and_vary() -> None:
    for seed in range(300):
        scene = scenes.compose(seed)
        caption = scene.caption.lower()
        for group in scene.groups:
            assert any(word in caption for word in scenes.SYNONYMS.get(group.colour, (group.colour,)))
            assert any(word in caption for word in scenes.SYNONYMS.get(group.shape, (group.shape,)))
    scene = scenes.compose(0)
    assert len({scenes.caption(scene, seed) for seed in range(50)}) > 25


def test_scenes_cover_what_they_can_show() -> None:
    composed = [scenes.compose(seed) for seed in range(2000)]
    groups = [group for scene in composed for group in scene.groups]
    for found, expected in (
        (Counter(g.shape for g in groups), scenes.SHAPES),
        (Counter(g.colour for g in groups), scenes.COLOURS),
        (Counter(s.background for s in composed), scenes.COLOURS),
        (Counter(g.count for g in groups), range(1, 6)),
        (Counter(s.place for s in composed), ("left", "right", "above", "below", "top left", "bottom right", "")),
    ):
        assert set(expected) <= set(found)
        assert min(found[key] for key in expected) > 40


def test_the_words_of_captions_have_ids_of_their_own() -> None:
    text = CONFIG["model_cfg"]["text_cfg"]
    tokenizer = WordTokenizer(text["vocab_size"], text["context_length"])
    words = {word.strip(".").lower() for seed in range(3000) for word in scenes.compose(seed).caption.split()}
    assert len({tokenizer.word(word) for word in words}) == len(words)
    longest = max((scenes.compose(seed).caption for seed in range(3000)), key=lambda caption: len(caption.split()))
    assert tokenizer([longest])[0].max() == tokenizer.end


def test_an_object_of_the_caption_is_in_the_picture() -> None:
    scene = scenes.Scene(3, "white", "plain", (scenes.Group(1, "large", "red", "square"),), "top left", "")
    pixels = np.asarray(scenes.draw(scene, (300, 240))).astype(int)
    red = (pixels[..., 0] - pixels[..., 2]) > 80
    assert 0.02 < red.mean() < 0.15
    assert red[: 240 // 2, : 300 // 2].sum() > 0.95 * red.sum()


@pytest.mark.parametrize(
    "blemish", [blemishes.recompressed, blemishes.watermarked, blemishes.cropped, blemishes.resized]
)
def test_a_blemish_changes_a_picture_and_follows_its_chance(blemish: object) -> None:
    assert callable(blemish)
    image, _ = scenes.render(11)
    before = image.tobytes()
    first, again = (blemish(image, random.Random(5)) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert image.tobytes() == before
    assert first.mode == "RGB"
    if first.size == image.size:
        change = np.abs(np.asarray(first).astype(int) - np.asarray(image).astype(int)).mean()
        assert 0.1 < change < 40
    else:
        assert 0.5 < first.width / image.width < 1


def test_a_watermark_is_visible() -> None:
    """On dark pictures as on light ones, hundreds of pixels differ by more than noise does."""
    for seed in range(40):
        image, _ = scenes.render(seed)
        marked = blemishes.watermarked(image, random.Random(seed))
        change = np.abs(np.asarray(marked).astype(int) - np.asarray(image).astype(int)).max(axis=2)
        assert (change > 30).mean() > 0.005
