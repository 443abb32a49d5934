"""What an audit says, in words: on the terminal, on its page, in messages."""

from clip_itm.auditing.marked import FEWEST
from clip_itm.data.marked_pairs import MarkedPairs
from clip_itm.visible import visible

FEW_ADVICE = "these are too few photos to say more"
BLIND_ADVICE = "either nearly all captions are wrong, or the model cannot tell pairs from mismatches"
WEAK_ADVICE = (
    "the model knows such photos too little: it ranks many right pairs like mismatches, so that nobody can tell how "
    "many captions are wrong. Name another --model, or train one on these data (head.kind crossfit)"
)
TRAINED = (
    "the model was trained on these pairs: wrong ones that it has learned by heart look right, so that the share is a "
    "lower bound and probabilities are too high"
)
ADVICE = "a model that has not seen them judges better: --model OTHER, or a run with head.kind crossfit"


def words_of_marks(marked: MarkedPairs, is_by_marks: bool) -> str:
    """What was marked, how and by whom. is_by_marks: whether the share comes from marks."""
    lost = f"{marked.unmatched:,} of no pair of these data" if marked.unmatched else ""
    if not marked.marks:
        return f"none; {lost}" if lost else "none"
    said = ", ".join(f"{count:,} {kind}" for kind, count in marked.counts.items())
    by = ", ".join(f"{visible(author)} ({count:,})" for author, count in marked.authors.items())
    sampled = int(marked.sampled.sum())
    few = f"{sampled} of them from a random sample, which tell how many are wrong from {FEWEST} on"
    return "; ".join(part for part in (said, f"by {by}", "" if is_by_marks else few, lost) if part)
