"""Captions without content: what each rule finds, and what it leaves alone."""

import csv
import json

import numpy as np
import pytest

from clip_itm.auditing.captions import caption_faults, cleaned

CLEAN = [
    "A black dog is running after a white dog in the snow .",
    "a man in a red shirt",
    "Two dogs .",
    "surfing",
    "A no parking sign",
    "a photo of a camera",
    "a broken image hangs on the wall",
    "an untitled painting in a museum",
    "A woman clicks to enlarge a picture on her phone .",
    "A sign that says www.example.com in a shop window",
    "Player 23 jumps for the ball .",
    "a screen shot from a video game of a man",
    "The number 7 bus",
    "A test tube is held by a man in a white coat .",
    "Los Angeles la la land poster",
    "犬",
    "собака",
]
FAULTS = {
    "file name": [
        "IMG_2031",
        "DSC0001.jpg",
        "dscn 0012",
        "img-20190304-wa0012",
        "my red mug.PNG",
        "1000268201_693b08cb0e",
        "image (3)",
        "Screenshot 2020-01-03 at 10.11.12",
        "B00X4WHP5E123",
    ],
    "link": ["https://example.com/a?b=c", "www.shop.com", "see example.org/page", "me@example.com"],
    "interface": [
        "click to enlarge",
        "Click here for a larger image",
        "Click on image to enlarge!",
        "broken image",
        "Image not available",
        "This image is no longer available",
        "No photo available.",
        "view larger image",
        "Read more",
        "add to cart",
        "photo coming soon",
    ],
    "placeholder": ["Untitled", "caption", "N/A", "a photo of", "Lorem ipsum dolor sit amet", "null"],
    "no words": ["", "   ", "A", "a.", "12", "!!!", "3 / 10", "😀😀", "\u200b", "5x"],
}


def spoken(count):
    """Different captions in which any word stands beside any other."""
    who = ["dog", "man", "woman", "boy", "girl", "cat", "horse", "player"]
    does = ["runs", "stands", "jumps", "waits", "plays", "looks", "sits"]
    where = ["in a park", "in a room", "on a road", "near a park", "on a beach", "in snow", "by a road"]
    made = [f"a {w} and a {v} {d} {p}" for w in who for d in does for p in where for v in who]
    made += [f"the {w} {d} {p} with a {v}" for w in who for d in does for p in where for v in who]
    order = np.random.default_rng(0).permutation(len(made))
    return [made[n] if k < len(made) else f"{made[n]} {k}" for k, n in enumerate(np.resize(order, count))]


def faults_of(captions):
    return caption_faults(captions, np.arange(len(captions)))


@pytest.mark.parametrize(("rule", "caption"), [(rule, text) for rule, texts in FAULTS.items() for text in texts])
def test_a_caption_without_content_falls_under_its_rule(rule, caption):
    found = faults_of([*CLEAN[:3], caption])
    assert {name: pairs.tolist() for name, pairs in found.get(rule, {}).items()} == {"": [3]}
    assert set(found) == {rule}


def test_clean_captions_fall_under_none():
    """The two of another script, which stand under "language", are another rule's."""
    found = faults_of(CLEAN)
    assert set(found) == {"language"}
    assert {name: pairs.tolist() for name, pairs in found["language"].items()} == {
        "Chinese or Japanese": [len(CLEAN) - 2],
        "Cyrillic": [len(CLEAN) - 1],
    }


def test_the_same_text_under_many_photos():
    captions = [*spoken(300), *["Best price!"] * 12, *["a cup"] * 9]
    found = faults_of(captions)
    assert list(found) == ["same text"]
    assert {name: pairs.tolist() for name, pairs in found["same text"].items()} == {"best price": [*range(300, 312)]}
    # twelve times under one photo is another thing
    image = np.arange(len(captions))
    image[300:312] = 300
    assert caption_faults(captions, image) == {}
    # and what is often in a small set is seldom in a large one: ten of 10,000
    assert "same text" not in faults_of([*spoken(10_000), *["best price"] * 12])


def test_a_frame_of_words_that_stand_nowhere_else():
    said = spoken(300)
    shop = [f"{text} | Free shipping at Acme" for text in spoken(20)]
    stock = [f"Stock photography of Getfoto : {text}" for text in spoken(15)]
    found = faults_of([*said, *shop, *stock])
    assert list(found) == ["frame"]
    assert {name: pairs.tolist() for name, pairs in found["frame"].items()} == {
        "... free shipping at acme": [*range(300, 320)],
        "stock photography of getfoto ...": [*range(320, 335)],
    }
    assert faults_of(said) == {}, "people begin and end alike, with words that stand elsewhere, too"
    elsewhere = [f"{text} free from shipping by acme" for text in spoken(40)]
    assert not any("at acme" in name for name in faults_of([*said, *shop, *elsewhere]).get("frame", {}))


def test_other_languages_and_scripts():
    english = ["a dog runs in the snow", "two men are on a boat", "the girl with her ball", "rugby match"] * 3
    others = {
        "German": "Ein Hund läuft durch den Schnee auf einem Feld",
        "French": "Deux hommes sont sur un bateau avec des enfants",
        "Spanish": "Un perro corre por la nieve y está junto al río",
        "Italian": "Un cane corre nella neve con una palla che è della ragazza",
        "Cyrillic": "Собака бежит по снегу",
        "Arabic": "كلب يركض في الثلج",
        "Korean": "눈 속에서 달리는 개",
        "Chinese or Japanese": "雪の中を走る犬",
        "Greek": "ένας σκύλος τρέχει στο χιόνι",
    }
    found = faults_of(english + list(others.values()))
    assert list(found) == ["language"]
    assert {name: pairs.tolist() for name, pairs in found["language"].items()} == {
        name: [len(english) + place] for place, name in enumerate(others)
    }
    german = [others["German"]] * 9 + ["Der Mann ist auf dem Boot", "A dog is in the snow"]
    assert faults_of(german)["language"]["English"].tolist() == [10]


def test_half_and_half_has_no_majority():
    assert faults_of(["a dog in the snow", "собака на снегу"]) == {}


def test_groups_do_not_overlap_and_the_largest_comes_first():
    captions = ["untitled"] * 30 + ["best price"] * 11 + ["nice shoes"] * 13 + spoken(200)
    found = faults_of(captions)
    assert list(found["same text"]) == ["nice shoes", "best price"]
    pairs = np.concatenate([pairs for groups in found.values() for pairs in groups.values()])
    assert len(np.unique(pairs)) == len(pairs) == 54


def test_little_and_nothing():
    assert faults_of([]) == {}
    assert faults_of(["a dog"]) == {}
    with pytest.raises(ValueError, match="2 captions and 1 photo numbers"):
        caption_faults(["a dog", "a cat"], np.array([0]))


def test_cleaned_texts():
    assert cleaned(" Ａ  Dog,\trunning…\u200b ") == "a dog running"
    assert cleaned("STRASSE") == cleaned("straße")
    assert cleaned("e\u0301te\u0301") == cleaned("été")
    assert cleaned("की") != cleaned("का"), "signs of vowels are no punctuation"


@pytest.mark.real_data
def test_the_captions_of_people_have_few_faults(real_data):
    with (real_data / "flickr8k/captions.txt").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    _, image = np.unique([row["image"] for row in rows], return_inverse=True)
    captions = [row["caption"] for row in rows]
    found = caption_faults(captions, image)
    assert {rule: [captions[n] for n in groups[""]] for rule, groups in found.items()} == {
        "no words": ["A", "a"],
        "interface": ["broken image"],
    }
    for split in ("train", "val"):
        file = real_data / f"coco_mini/annotations/captions_{split}2017.json"
        annotations = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        assert caption_faults([a["caption"] for a in annotations], np.array([a["image_id"] for a in annotations])) == {}
