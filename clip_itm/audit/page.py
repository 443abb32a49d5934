"""The most suspicious pairs of an audit as one HTML file: photos inside, no network, usable without a mouse.

Everything is in the page before its script runs; the script only hides, counts and sorts. What comes from the data is
escaped, and a content security policy lets no other script run.
"""

import base64
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from clip_itm.audit.table import THRESHOLD, Audit
from clip_itm.data.images import read_image, small_jpeg
from clip_itm.pages import escaped, image_element, probability

SIDE = 176  # longer side of a photo on the page, pixels

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1b1f24; --quiet: #59636e; --line: #d5dae0;
  --accent: #0b57d0; --wrong: #b3261e; --right: #146c2e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1f2328; --text: #e8eaed; --quiet: #a3adb8;
  --line: #3a4149; --accent: #8ab4f8; --wrong: #ff8a80; --right: #7ddc94; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, main { max-width: 1500px; margin: auto; padding: 0 16px; }
h1 { font-size: 1.35rem; margin: 20px 0 4px; overflow-wrap: anywhere; }
header p { margin: 4px 0; color: var(--quiet); max-width: 75ch; }
dl { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 12px 0; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
form { position: sticky; top: 0; z-index: 1; background: var(--page); border-block: 1px solid var(--line); }
form > div { display: flex; flex-wrap: wrap; align-items: end; gap: 8px 20px; max-width: 1500px; margin: auto;
  padding: 8px 16px; }
label, legend { font-size: .8rem; color: var(--quiet); padding: 0; }
label.field { display: grid; gap: 2px; }
fieldset { border: 0; margin: 0; padding: 0; }
fieldset label { font-size: 1rem; color: var(--text); margin-right: 12px; white-space: nowrap; }
input[type=search], select { font: inherit; color: var(--text); background: var(--card); padding: 4px 8px;
  border: 1px solid var(--line); border-radius: 6px; min-width: 0; width: 15em; }
input[type=range] { width: 12em; accent-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#count { margin: 0 0 2px auto; color: var(--quiet); }
#pairs { list-style: none; margin: 16px 0; padding: 0; display: grid; gap: 14px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
#pairs > li { display: grid; grid-template-columns: 150px 1fr; gap: 12px; background: var(--card); padding: 10px;
  border: 1px solid var(--line); border-radius: 10px; content-visibility: auto; contain-intrinsic-size: auto 172px; }
#pairs > li[hidden] { display: none; }
img, .gone { width: 150px; height: 150px; object-fit: contain; background: var(--page); border-radius: 6px; }
.gone { display: grid; place-items: center; color: var(--quiet); }
.text { min-width: 0; overflow-wrap: anywhere; }
.caption { margin: 0 0 6px; font-weight: 600; }
.figures, .ids { margin: 0 0 4px; color: var(--quiet); font-size: .82rem; }
.truth { font-weight: 600; white-space: nowrap; }
.wrong { color: var(--wrong); }
.right { color: var(--right); }
details { font-size: .86rem; }
summary { cursor: pointer; color: var(--quiet); }
details ul { margin: 4px 0 0; padding-left: 1.1em; }
@media (max-width: 480px) { form { position: static; } label.field, input[type=search], select, input[type=range] {
  width: 100%; } #pairs > li { grid-template-columns: 110px 1fr; } img, .gone { width: 110px; height: 110px; }
  #count { margin-left: 0; } }
"""

SCRIPT = """
const form = document.querySelector("form"), list = document.getElementById("pairs");
const cards = [...list.children].map((card) => ({
  card,
  rank: Number(card.dataset.rank),
  probability: Number(card.dataset.probability),
  photo: Number(card.dataset.photo),
  truth: card.dataset.truth,
  words: (card.querySelector(".caption").textContent + " " + card.querySelector(".ids").textContent).toLowerCase(),
}));
const orders = {
  rank: (one, other) => one.rank - other.rank,
  least: (one, other) => other.rank - one.rank,
  photo: (one, other) => one.photo - other.photo || one.rank - other.rank,
  caption: (one, other) => one.words.localeCompare(other.words),
};
const probabilities = cards.map((one) => one.probability).sort((one, other) => one - other);
function show() {
  const words = form.elements.search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const most = probabilities[form.elements.most.value - 1];
  const truth = form.elements.truth ? form.elements.truth.value : "";
  let count = 0;
  for (const one of cards) {
    one.card.hidden = one.probability > most || (truth && one.truth !== truth)
      || !words.every((word) => one.words.includes(word));
    count += !one.card.hidden;
  }
  document.getElementById("limit").textContent = Number(most.toPrecision(2));
  document.getElementById("count").textContent = count + " of " + cards.length + " pairs";
}
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
form.elements.sort.addEventListener("change", () => {
  list.append(...cards.sort(orders[form.elements.sort.value]).map((one) => one.card));
});
form.hidden = false;
show();
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{summary}</p>
<dl>{facts}</dl>
</header>
<form hidden aria-label="filter and sort">
<div>
<label class="field">words in the caption or the ids <input type="search" name="search" autocomplete="off"></label>
<label class="field"><span>probability at most <output id="limit"></output></span>
<input type="range" name="most" min="1" max="{count}" value="{count}"></label>
{truth_filter}
<label class="field">order <select name="sort">
<option value="rank">most suspicious first</option>
<option value="least">least suspicious first</option>
<option value="photo">by photo</option>
<option value="caption">by caption, A to Z</option>
</select></label>
<p id="count" role="status"></p>
</div>
</form>
<main>
<ul id="pairs">
{cards}
</ul>
</main>
<script>{script}</script>
</body>
</html>
"""

TRUTH_FILTER = """<fieldset><legend>the caption really is</legend>
<label><input type="radio" name="truth" value="" checked> wrong or right</label>
<label><input type="radio" name="truth" value="wrong"> wrong</label>
<label><input type="radio" name="truth" value="right"> right</label>
</fieldset>"""

CARD = """<li data-rank="{rank}" data-probability="{probability}" data-photo="{photo}" data-truth="{truth}">
{image}
<div class="text">
<p class="caption">{caption}</p>
<p class="figures">{mark}probability {shown}</p>
<p class="ids">rank {rank} · caption {caption_id}<br>photo {image_id}</p>
{others}
</div>
</li>"""


def audit_page(audit: Audit, top: int) -> str:
    """The page of the `top` most suspicious pairs. A photo that cannot be read leaves an empty place."""
    pairs, order = audit.train.pairs, audit.clean.order()[:top]
    captions = audit.noise.apply(pairs)
    thumbnails = make_thumbnails(audit, np.unique(pairs.image[order]))
    cards = []
    for rank, pair in enumerate(order.tolist(), start=1):
        photo, wrong = int(pairs.image[pair]), audit.known_wrong
        truth = "" if wrong is None else "wrong" if wrong[pair] else "right"
        start, end = np.searchsorted(pairs.image, [photo, photo + 1])
        others = [
            f"<li>{escaped(captions[k].as_py())} ({probability(audit.clean.values[k])})</li>"
            for k in range(start, end)
            if k != pair
        ]
        image_id = escaped(pairs.image_ids[photo].as_py())
        card = {
            "rank": rank,
            "probability": f"{audit.clean.values[pair]:.9g}",
            "shown": probability(audit.clean.values[pair]),
            "photo": photo,
            "truth": truth,
            "mark": MARKS[truth],
            "image": image_element(thumbnails[photo], f"photo {image_id}"),
            "caption": escaped(captions[pair].as_py()),
            "image_id": image_id,
            "caption_id": escaped(pairs.caption_ids[int(audit.noise.source[pair])].as_py()),
            "others": "",
        }
        if others:
            plural = "s" if len(others) > 1 else ""
            summary = f"<summary>{len(others)} other caption{plural} of this photo</summary>"
            card["others"] = f"<details>{summary}<ul>{''.join(others)}</ul></details>"
        cards.append(CARD.format(**card))
    facts = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in describe(audit))
    return PAGE.format(
        title=escaped(f"Suspicious captions: {audit.run}"),
        summary=escaped(
            f"The {len(order):,} most suspicious of {len(pairs):,} training pairs. The probability says how likely it "
            f"is that the caption belongs to the photo, by this estimate: {audit.clean.method}."
        ),
        facts=facts,
        truth_filter="" if audit.known_wrong is None else TRUTH_FILTER,
        count=len(order),
        cards="\n".join(cards),
        style=STYLE,
        script=SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


MARKS = {
    "": "",
    "wrong": '<span class="truth wrong">✗ wrong</span> · ',
    "right": '<span class="truth right">✓ right</span> · ',
}


def describe(audit: Audit) -> list[tuple[str, str]]:
    """What the header of the page and the table in the terminal say of a run: name and value."""
    noise, pairs, found = audit.noise, len(audit.clean.values), audit.found
    facts = [
        ("method", audit.recipe.head.kind),
        ("data", f"{audit.recipe.data.source}, {pairs:,} pairs of {len(audit.train):,} photos"),
        ("noise", f"{noise.ratio:g} ({noise.level} level), {noise.sha256[:12]}" if noise.ratio else "none drawn"),
        (f"probability below {THRESHOLD:g}", share(audit.suspects, pairs)),
    ]
    if found is None:
        return [*facts, ("really wrong", "not known" if audit.known_wrong is None else "none")]
    return [
        *facts,
        ("really wrong", share(found["wrong"], pairs)),
        ("AUC", "not defined: all are wrong" if found["auc"] is None else f"{found['auc']:.3f}"),
        (f"precision among the {found['wrong']:,} most suspicious", f"{found['precision']:.1%}"),
    ]


def share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def make_thumbnails(audit: Audit, photos: np.ndarray) -> dict[int, bytes | None]:
    """JPEG bytes of photos of the training split by number; None where one cannot be read."""
    images = audit.train.rows.select_columns(["image"])

    def thumbnail(photo: int) -> bytes | None:
        try:
            return small_jpeg(read_image(images[photo]["image"], draft_size=SIDE), SIDE)
        except ValueError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = tqdm(pool.map(thumbnail, photos.tolist()), total=len(photos), desc="small photos", leave=False)
        return dict(zip(photos.tolist(), made, strict=True))
