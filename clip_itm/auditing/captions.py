"""Captions that say nothing about any photo: found from the text alone, before any model runs.

The rules are narrow on purpose. The first one that fits a caption decides, so that the groups add up:

    file name      a name given by a camera, a phone or a program: "IMG_2031", "DSC0001.jpg"
    link           an address and hardly anything else
    interface      words of the page around a photo: "click to enlarge", "image not available"
    placeholder    words in place of a caption: "untitled", "caption"
    no words       nothing but digits, punctuation or one letter
    same text      one text under many photos
    frame          a beginning or end that many captions share, in words that hardly occur elsewhere
    language       a language other than that of most captions (`languages.py`)
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from clip_itm.auditing.languages import foreign

REPEATED = 10  # photos with one text, at least,
REPEATED_PART = 0.002  # and this part of all: on COCO "a man riding a wave on top of a surfboard" is right 100 times
FRAME_WORDS = 3  # the shortest beginning or end
LONGEST_FRAME = 30  # words
FRAME_PART = 0.005  # of the photos have a frame, and at least REPEATED of them
BOUND = 0.95  # a word is bound to a frame if this fraction of the texts with the word have the frame
BOUND_WORDS = 2  # the fewest bound words of a frame: those of "a man in a red shirt" occur elsewhere, "group" does not

ENDINGS = frozenset(
    "jpg jpeg png gif bmp tif tiff webp heic heif avif svg raw cr2 cr3 nef arw dng psd pdf mp4 mov avi webm".split()  # noqa: SIM905
)
CAMERA = re.compile(
    r"(?:(?:img|dsc[nf]?|_dsc|pict|sam|gopr|mvi|pxl|vid|cimg|imgp|hpim|dji|wp|mg|p)[\s_-]*\d{3}[\d\s_.-]*(?:\(\d+\))?"
    r"|(?:image|photo|picture|figure|scan|file|screen ?shot|whatsapp image|untitled|unnamed|download)"
    r"[\s_-]*\(?\d[\d\s_.:at-]*\)?)",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"(?=(?:\D*\d){4})(?=\S*[\d_])[A-Za-z0-9_-]{6,}")  # one word with four digits
LINK = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+|[\w-]+\.(?:com|net|org|edu|gov|info|shop)\b\S*", re.IGNORECASE)
LINK_WORDS = 2  # next to a link, at most

_PHOTO = r"(?:images?|photos?|pictures?|pics?|thumbnails?|videos?)"
INTERFACE = re.compile(
    rf"(?:please )?(?:click|tap|hover)(?: on)?(?: the| this)?(?: {_PHOTO})? (?:here|to|for)(?: \w+){{0,5}}"
    rf"|(?:view|see|show|open|download|enlarge|zoom)(?: the| a| this)?(?: full| size| larger?| bigger| high| hi| res"
    rf"| resolution| original| all| more)*(?: {_PHOTO}| version| gallery| details)"
    rf"|(?:sorry )?(?:broken|missing|no)(?: {_PHOTO}| caption| description| preview)"
    r"(?: is| not| yet| available| found| provided| here)*"
    rf"|(?:sorry )?(?:this |the )?(?:{_PHOTO}|preview|content) (?:is |are |has been |was )?(?:currently |no longer )?"
    r"(?:not (?:available|found|loaded|loading)|unavailable|available|missing|broken|removed|deleted|loading"
    r"|coming soon)(?: yet)?"
    r"|(?:view|see|read|learn|show|load|find out) more|(?:buy|shop|order) now|add to (?:cart|basket|wish ?list)"
    r"|(?:share|follow(?: us)?) on \w+|pin it|quick view|sold out|loading|advertisement|sponsored|skip to content"
    r"|back to top|sign (?:up|in)|log in|all rights reserved"
)
PLACEHOLDERS = frozenset(
    """untitled;unnamed;no title;title;unknown;none;null;nan;nil;n a;na;undefined;todo;tbd;tba;test;testing;
    test caption;test image;caption;captions;description;image description;photo description;alt;alt text;image;
    images;photo;photos;picture;pictures;img;pic;photograph;thumbnail;an image;a photo;a picture;the image;the photo;
    the picture;image of;photo of;picture of;an image of;a photo of;a picture of;stock photo;stock image;default;
    placeholder;empty;blank;asdf;foo;xxx;caption here;your caption here;enter caption here;insert caption here;
    your text here;insert text here;enter text here;same;same as above;see above;ditto;misc;other;
    object object""".replace("\n", "")
    .replace("    ", "")
    .split(";")
)


class _Separators(dict):
    """For `str.translate`: turns marks, symbols and white space into spaces, and drops invisible characters."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = "" if category == "Cf" else " " if category[0] in "PSZC" else chr(code)
        return self[code]


_SEPARATORS = _Separators()


def cleaned(text: str) -> str:
    """The words of a text as the rules read them: one case, one form of each character, no punctuation.

    Example:
        >>> cleaned(" A  dog, running. ") == cleaned("a dog running")
        True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SEPARATORS).split())


def caption_faults(captions: Sequence[str], image: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Pairs by rule and, within a rule, by what they have in common, as ascending int64 arrays.

    `captions` [N] of the pairs; `image` int64 [N], their photos. Inner keys are the text for "same text" and "frame"
    (with "..." where captions continue), the language for "language", else "". The largest groups come first; rules
    without pairs are left out. Raises ValueError if the two differ in length.

    Example:
        >>> caption_faults(["a red mug", "IMG_2031"], np.array([0, 1]))
        {'file name': {'': array([1])}}
    """
    image = np.asarray(image)
    if len(captions) != len(image):
        raise ValueError(f"{len(captions)} captions and {len(image)} photo numbers; expected one for each")
    words = [cleaned(text) for text in captions]
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    rest = []
    for number, (text, key) in enumerate(zip(captions, words, strict=True)):
        rule = _empty(text.strip(), key)
        if rule is None:
            rest.append(number)
        else:
            found[rule][""].append(number)
    for rule, groups in (
        ("same text", _same_texts),
        ("frame", _frames),
        ("language", lambda texts, _: foreign(texts)),
    ):
        here = groups({number: words[number] for number in rest}, image)
        if here:
            found[rule] |= here
            gone = {number for pairs in here.values() for number in pairs}
            rest = [number for number in rest if number not in gone]
    return {
        rule: {
            name: np.array(pairs, dtype=np.int64)
            for name, pairs in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        }
        for rule, groups in found.items()
    }


def _empty(text: str, key: str) -> str | None:
    """The rule that one caption meets by itself, or None."""
    stem, _, ending = text.rpartition(".")
    if (stem and ending.casefold() in ENDINGS and not stem[-1].isspace() and len(text.split()) <= 4) or (
        CAMERA.fullmatch(text) or IDENTIFIER.fullmatch(text)
    ):
        return "file name"
    rest, links = LINK.subn(" ", text)
    if links and len(cleaned(rest).split()) <= LINK_WORDS:
        return "link"
    if INTERFACE.fullmatch(key):
        return "interface"
    if key in PLACEHOLDERS or key.startswith("lorem ipsum"):
        return "placeholder"
    letters = [character for character in key if character.isalpha()]
    if not letters or (len(letters) == 1 and unicodedata.name(letters[0], "").startswith("LATIN")):
        return "no words"
    return None


def _same_texts(words: dict[int, str], image: np.ndarray) -> dict[str, list[int]]:
    """Texts under so many different photos that they cannot describe them."""
    least = max(REPEATED, int(np.ceil(REPEATED_PART * _photos(image))))
    pairs = defaultdict(list)
    for number, text in words.items():
        pairs[text].append(number)
    return {
        text: members
        for text, members in pairs.items()
        if len(members) >= least and len(np.unique(image[members])) >= least
    }


def _frames(words: dict[int, str], image: np.ndarray) -> dict[str, list[int]]:
    """Beginnings and ends that many different texts share, with words that hardly any other text has."""
    least = max(REPEATED, int(np.ceil(FRAME_PART * _photos(image))))
    texts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, text in words.items():
        texts[tuple(text.split())].append(number)
    spread = Counter(word for text in texts for word in set(text))
    found: dict[str, list[int]] = {}
    for backwards in (False, True):
        begin = defaultdict(list)
        for text in texts:
            if len(text) > FRAME_WORDS:
                begin[text[::-1][:FRAME_WORDS] if backwards else text[:FRAME_WORDS]].append(text)
        for members in begin.values():
            if len(members) < least:
                continue
            frame, members = _longest_frame([text[::-1] if backwards else text for text in members])
            if len(members) < least or _bound(frame, spread, len(members)) < BOUND_WORDS:
                continue
            name = "... " + " ".join(frame[::-1]) if backwards else " ".join(frame) + " ..."
            pairs = [number for text in members for number in texts[text[::-1] if backwards else text]]
            if len(np.unique(image[pairs])) >= least:
                found[name] = sorted(pairs)
    return found


def _bound(frame: tuple[str, ...], spread: Counter, count: int) -> int:
    """How many words of a frame hardly occur outside of its `count` texts."""
    return sum(spread[word] * BOUND <= count for word in set(frame))


def _longest_frame(texts: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The longest beginning shared by nearly all `texts` (with the same first words), and the texts that have it."""
    size = FRAME_WORDS
    while size < LONGEST_FRAME:
        following = Counter(text[size] for text in texts if len(text) > size + 1).most_common(1)
        word, count = following[0] if following else ("", 0)
        if count < BOUND * len(texts):
            break
        texts = [text for text in texts if len(text) > size + 1 and text[size] == word]
        size += 1
    return texts[0][:size], texts


def _photos(image: np.ndarray) -> int:
    return len(np.unique(image))
