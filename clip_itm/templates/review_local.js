// Pairs from the cards of this page, and marks in the browser: there is no server, and a file to take them along.
function localTransport(cards, hear) {
  const kept = keptMarks("clip-itm mark ");
  const LINE = 0.5; // a pair below it is more likely wrong than right
  const page = cards.map((card) => card.dataset.pair).sort().join().slice(0, 98) + cards.length;
  const all = cards.map((card, k) => ({
    card,
    pair: card.dataset.pair,
    image_id: card.dataset.imageId,
    caption: card.dataset.caption,
    probability: Number(card.dataset.probability),
    rank: Number(card.dataset.rank) || k + 1,
    groups: card.dataset.groups ? card.dataset.groups.split(", ") : [],
    suggestions: [...card.querySelectorAll(".fits + ul .suggestion")].map((found) => found.dataset.text), // what is proposed
    src: card.querySelector("img")?.src || null,
  }));
  const known = new Map(all.map((one) => [one.pair, one]));
  const own = () => kept.all().filter((mark) => known.has(mark.pair) || mark.page === page);

  // as the page shows them now: filtered and sorted
  const shown = () => [...cards[0].parentNode.children].filter((card) => !card.hidden && card.dataset.pair)
    .map((card) => known.get(card.dataset.pair));
  const listed = (query) => query.group ? all.filter((one) => one.groups.includes(query.group)) : shown();

  function count(pairs, marks) {
    return { pairs: pairs.length, marked: pairs.filter((one) => marks.has(one.pair)).length };
  }

  function stateOf(query, marks) {
    const kinds = {};
    for (const one of all) {
      const kind = marks.get(one.pair)?.mark;
      if (kind) kinds[kind] = (kinds[kind] || 0) + 1;
    }
    const open = all.filter((one) => !marks.has(one.pair) || marks.get(one.pair).mark === "skipped");
    return {
      list: count(listed(query), marks), all: count(all, marks), marks: kinds,
      suspects: count(query.group || shown().length < all.length ? [] : all.filter((one) => one.probability < LINE), marks),
      left: { pairs: open.length, wrong: open.reduce((sum, one) => sum + 1 - one.probability, 0) },
    };
  }

  function label() {
    const marks = marksOfPairs(own());
    for (const one of all) {
      const mark = marks.get(one.pair);
      let place = one.card.querySelector(".marked");
      if (!place && mark) {
        place = document.createElement("p");
        one.card.querySelector(".words").append(place);
      }
      if (!place) continue;
      place.className = "marked";
      place.hidden = !mark;
      place.textContent = mark ? "marked " + mark.mark + (mark.text ? ": “" + mark.text + "”" : "") : "";
    }
  }

  const current = () => Object.fromEntries(hear.query().filter(([name]) => name !== "pair"));

  function changed() {
    label();
    const marks = marksOfPairs(own());
    return { ...stateOf(current(), marks), said: Object.fromEntries(all.map((one) => [one.pair, marks.get(one.pair) || null])) };
  }

  window.addEventListener("storage", () => hear.watched(changed())); // another window has marked
  label();

  return {
    keeps: true,
    async pairs(query) {
      const marks = marksOfPairs(own()), pairs = listed(query);
      const rows = pairs.map((one, place) => ({ ...one, place, mark: marks.get(one.pair) || null }));
      let found = rows.filter((row) => query.backwards ? row.place <= query.start : row.place >= query.start);
      if (query.backwards) found.reverse();
      if (query.unmarked) found = found.filter((row) => !row.mark);
      if (query.only) found = rows.filter((row) => row.pair === query.only);
      return { pairs: found.slice(0, query.count || 1), ...stateOf(query, marks) };
    },
    async groups() {
      const names = [...new Set(all.flatMap((one) => one.groups))], marks = marksOfPairs(own());
      return names.map((name) => ({ group: name, text: "", ...count(listed({ group: name }), marks) }));
    },
    async members(query) {
      const marks = marksOfPairs(own());
      return { pairs: listed(query).map((one) => one.pair).filter((pair) => !marks.has(pair)), more: 0 };
    },
    photo: (pair) => pair.src,
    about: (pair) => ({ image_id: known.get(pair).image_id, caption: known.get(pair).caption }),
    isMarked: () => false,
    async send(marks) {
      for (const mark of marks) kept.add({ ...mark, page, ...this.about(mark.pair) });
      if (!kept.isKept) {
        hear.trouble("This browser keeps nothing: download the marks before you close the page.", true);
      }
      hear.saved(marks, changed());
    },
    download() {
      download(own().map(({ page, ...mark }) => mark), "marks.jsonl");
    },
    // Adds the marks of a file that are not here yet; returns how many, or throws an Error that names the line.
    load(text) {
      const here = new Set(own().map(({ page, ...mark }) => keyOf(mark)));
      const found = text.replace(/^\ufeff/, "").split("\n").flatMap((line, k) => {
        if (!line.trim()) return [];
        let mark;
        try {
          mark = JSON.parse(line);
        } catch {
          if (line.startsWith("{")) return []; // it was cut off
        }
        if (typeof mark?.pair !== "string" || typeof mark.mark !== "string") throw new Error("line " + (k + 1) + " is no mark");
        return [mark];
      });
      const added = found.filter((mark) => !here.has(keyOf(mark)));
      for (const mark of added) kept.add({ time: timeOfMark(), ...mark, page });
      hear.watched(changed());
      return added.length;
    },
  };

  function keyOf(mark) {
    return [mark.pair, mark.mark, mark.text || "", mark.author || "", mark.time || ""].join(" ");
  }
}
