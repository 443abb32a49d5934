"""Captions in a language other than that of most: by the script of their letters and, in Latin, by function words.

Neither a model nor a dictionary is needed: twenty small words tell sentences of one language from those of another,
and a caption with none of them ("rugby match") has no language. A language that is not listed below is found only if
its script differs.
"""

import unicodedata
from collections import Counter, defaultdict
from functools import cache

FUNCTION_WORDS = {  # without those that mean something else in English captions: as, no, do, die, den, van, due, i, on
    "English": "the a an of in on with is are and at to his her through near by while from their",
    "German": "der das ein eine einen einem einer und mit auf ist im dem sind von zwei vor durch neben wird",
    "French": "le la les un une des et avec dans sur est du au aux en deux qui sont devant pour",
    "Spanish": "el la los las un una unos y con en del por está que dos sobre junto al están para",
    "Italian": "il lo la gli un una uno di e con in su che è del della nel sono sul davanti",
    "Portuguese": "o os um uma e com em na de da que dois está duas são ao pela uns num numa",
    "Dutch": "de het een en met op in zijn twee naar voor door aan staat naast bij",
    "Polish": "w na z się jest dwa dwie przez obok który która są po ze nad",
    "Swedish": "en ett och med på är som två av till sig vid",
    "Turkish": "bir ve ile bu iki için üzerinde var olan önünde",
}
_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
FEWEST_WORDS = 2  # distinct function words of a caption, one of them not in OF_NAMES
OF_NAMES = frozenset(
    ("el", "la", "los", "las", "le", "les", "de", "del", "di", "da", "du", "en", "van")
)  # in names, such as Los Angeles
MAJORITY = 0.5  # of the captions that have a script, or a language, are in it: else there is no majority to differ from
_SCRIPTS = {"CJK": "Chinese or Japanese", "HIRAGANA": "Chinese or Japanese", "KATAKANA": "Chinese or Japanese"}
_SCRIPTS |= {"HANGUL": "Korean"}


def foreign(texts: dict[int, str]) -> dict[str, list[int]]:
    """Ascending numbers of the cleaned `texts` whose language or script is not the majority's, by language or script.

    Example:
        >>> foreign({0: "a dog in the snow", 1: "a man on a bike", 2: "ein hund auf dem sofa", 3: "собака на снегу"})
        {'German': [2], 'Cyrillic': [3]}
    """
    scripts = {number: script for number, text in texts.items() if (script := script_of(text))}
    own_script = _majority(scripts.values())
    if own_script is None:
        return {}
    languages = {
        number: language
        for number, script in scripts.items()
        if script == own_script == "Latin" and (language := _language(texts[number].split()))
    }
    own = _majority(languages.values())
    found = defaultdict(list)
    for number, script in scripts.items():
        if script != own_script:
            found[script].append(number)
        elif own is not None and languages.get(number, own) != own:
            words = set(texts[number].split())
            theirs, ours = _WORDS[languages[number]] - _WORDS[own], _WORDS[own] - _WORDS[languages[number]]
            if len(words & theirs) >= FEWEST_WORDS and words & (theirs - OF_NAMES) and not words & ours:
                found[languages[number]].append(number)
    return dict(found)


def script_of(text: str) -> str | None:
    """The script of most letters of a text (the first on a tie), None without letters."""
    counts = Counter(script for letter in text if (script := _script(letter)))
    return counts.most_common(1)[0][0] if counts else None


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    word = unicodedata.name(character, "").split(" ")[0]
    return _SCRIPTS.get(word, word.capitalize() or None)


def _language(words: list[str]) -> str | None:
    """The language with the most distinct function words in a caption."""
    distinct = set(words)
    hits = {language: len(distinct & own) for language, own in _WORDS.items()}
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] >= FEWEST_WORDS else None


def _majority(names) -> str | None:
    counts = Counter(names)
    if not counts:
        return None
    name, count = counts.most_common(1)[0]
    return name if count > MAJORITY * counts.total() else None
