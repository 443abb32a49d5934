// The review of pairs: one at a time, by keys or buttons. `makeTransport` says where pairs come from and where marks go,
// and `place` which marks of this browser belong here; a mark is told as made once the transport has answered.
function startReview(makeTransport, place) {
  const fixing = one("form.fix"), order = one("[name=order]"), group = one("[name=group]");
  const MOST_ACTS = 100, AHEAD = 6;
  const mine = new Set(); // pairs that were marked since the list was chosen: an answer may have been under way
  let pair = null, ahead = [], round = 0, isLoading = false, groups = [], keysAct = true, isOpen = false;
  let transport = null;

  const author = () => settings.get("author") || "";
  const chosen = () => groups[Number(group.value) - 1] || { group: "", text: "" };
  const list = () => ({ order: order.value, group: chosen().group, text: chosen().text });
  const isDone = (known) => mine.has(known.pair) || transport.isMarked(known.pair)
    || (known.mark !== null && (order.value !== "sample" || known.mark.sampled));

  transport = makeTransport({
    query: () => [...Object.entries(list()), ...[pair, ...ahead].filter(Boolean).map((known) => ["pair", known.pair])],
    trouble(text, hasMarks) {
      showTrouble(text);
      one("[data-act=download]").hidden = !hasMarks && !transport?.keeps;
    },
    back() {
      say("The server answers again.");
      if (isOpen && !pair) next(0);
    },
    saved(marks, answer) {
      say(saidOf(marks));
      watched(answer);
    },
    watched,
  });

  // What has become of the pairs in this window, by whomever.
  function watched(found) {
    if (!isOpen) return;
    showProgress(found, list());
    for (const known of [pair, ...ahead].filter(Boolean)) {
      if (!(known.pair in found.said)) continue;
      const before = known.mark, mark = found.said[known.pair];
      known.mark = mark;
      if (known === pair && mark?.time !== before?.time) {
        showMark(mark);
        if (mark && mark.author !== author()) say(visible(mark.author || "somebody") + " has just marked this pair: " + DID[mark.mark]);
      }
    }
    ahead = ahead.filter((known) => !isDone(known));
  }

  // The answer to a query of this list; null where there is none, or it comes too late.
  async function look(query) {
    const own = ++round;
    isLoading = true;
    try {
      const found = await transport.pairs({ ...list(), ...query });
      if (own !== round) return null;
      showProgress(found, list());
      return found;
    } catch {
      return null;
    } finally {
      if (own === round) isLoading = false;
    }
  }

  // Turn to the next pair without a mark, from this place of the list on, then from its beginning.
  async function next(start = pair ? pair.place + 1 : 0) {
    ahead = ahead.filter((known) => !isDone(known));
    if (!ahead.length) {
      turnTo(null);
      for (let from = start, isAgain = start === 0; ;) {
        const found = await look({ start: from, count: AHEAD + 1, unmarked: "yes" });
        if (!found) return;
        ahead = found.pairs.filter((known) => !isDone(known));
        if (ahead.length) break;
        if (found.pairs.length) {
          from = found.pairs.at(-1).place + 1;
        } else if (isAgain) {
          return turnTo(null, nothingLeft(found));
        } else {
          from = 0;
          isAgain = true;
        }
      }
    }
    turnTo(ahead.shift());
    if (ahead.length < 3 && !isLoading) {
      const found = await look({ start: (ahead.at(-1) || pair).place + 1, count: AHEAD, unmarked: "yes" });
      if (found) ahead.push(...found.pairs.filter((known) => !isDone(known)));
    }
    for (const known of ahead.slice(0, 3)) {
      const small = transport.photo(known, "small");
      if (small) new Image().src = small; // it is there when it is its turn
    }
  }

  async function step(by) {
    if (isLoading) return;
    const start = pair ? pair.place + by : 0;
    const found = start < 0 ? { pairs: [] } : await look({ start, count: 1, backwards: by < 0 ? "yes" : "" });
    if (!found) return;
    if (!found.pairs.length) return say(by < 0 ? "This is the first pair." : "This is the last pair.");
    ahead = [];
    turnTo(found.pairs[0]);
  }

  function turnTo(other, why = "") {
    pair = other;
    showPair(pair, pair && transport.photo(pair, "small"), why);
    const isChoosing = one("dialog[open]") || document.activeElement.closest("select"); // with arrows, one after the other
    if (pair && isOpen && !isChoosing) focusPair();
  }

  function mark(kind, text) {
    if (!pair) return;
    const made = { pair: pair.pair, mark: kind, image_id: pair.image_id, caption: pair.caption };
    send([text === undefined ? made : { ...made, text }]);
    next();
  }

  const acts = () => JSON.parse(settings.get("acts " + place) || "[]");
  const keepActs = (all) => settings.set("acts " + place, JSON.stringify(all.slice(-MOST_ACTS)));

  function send(marks) {
    const sampled = order.value === "sample" && !list().group;
    keepActs([...acts(), marks.map((known) => known.pair)]);
    marks.forEach((known) => mine.add(known.pair));
    const time = timeOfMark();
    return transport.send(marks.map((known) => ({ ...known, author: author(), time, sampled })));
  }

  async function undo() {
    const all = acts(), last = all.pop();
    if (!last) return say("There is no mark of this browser to take back.");
    keepActs(all);
    last.forEach((known) => mine.delete(known));
    const time = timeOfMark();
    await transport.send(last.map((known) => ({ pair: known, mark: "undone", author: author(), time, sampled: false })));
    if (last.length > 1) return next(0);
    const found = await look({ only: last[0] });
    if (!found?.pairs.length) return;
    ahead = [];
    turnTo(found.pairs[0]);
  }

  function openFix() {
    if (!pair) return;
    fixing.hidden = false;
    fixing.elements.text.value = pair.mark?.text || pair.caption;
    fixing.elements.text.focus();
    fixing.elements.text.select();
    fixing.scrollIntoView({ block: "nearest" });
  }

  function closeFix() {
    fixing.hidden = true;
    focusPair();
  }

  function saveFix() {
    const text = fixing.elements.text.value.trim();
    if (!text) return say("Write what the photo shows, or press Esc.");
    if (text === pair.caption.trim()) return say("This is the caption as it is: change it, or press Esc.");
    mark("fixed", text);
  }

  function suggest(k) {
    const text = pair?.suggestions.slice(0, SUGGESTIONS)[k];
    if (text) mark("fixed", text);
  }

  // Everything of the group that has no mark, after a question that says how many.
  async function markGroup(kind) {
    if (!list().group) return say("Choose a group first.");
    let members, some;
    try {
      members = await transport.members(list());
      some = (await transport.pairs({ ...list(), start: 0, count: 6, unmarked: "yes" })).pairs;
    } catch {
      return; // it was told
    }
    if (!members.pairs.length) return say("All pairs of this group are marked.");
    const examples = some.map((known) => ({ src: transport.photo(known, "small"), caption: known.caption }));
    if (await askForGroup(members.pairs.length, members.more, chosen(), kind, examples) !== "yes") return;
    ahead = [];
    await send(members.pairs.map((known) => ({ pair: known, mark: kind, ...transport.about?.(known) })));
    next(0);
  }

  async function askName() {
    const dialog = one("dialog.name"), field = dialog.querySelector("input");
    if (author()) field.value = author();
    field.select();
    const isSaid = await answerOf(dialog) === "yes" || !author();
    if (isSaid) settings.set("author", field.value.trim().replace(/\s+/g, " ") || "somebody");
    showName(author());
  }

  const ACTS = {
    right: () => mark("right"), wrong: () => mark("wrong"), skip: () => mark("skipped"), fix: openFix, undo,
    cancel: closeFix, author: askName, before: () => step(-1), after: () => step(1), group: () => group.focus(),
    "all-wrong": () => markGroup("wrong"), "all-right": () => markGroup("right"),
    enlarge() {
      const large = pair && transport.photo(pair, "large");
      if (large) enlarge(large);
    },
    shrink: () => one("dialog.large").close(),
    async keys() {
      await answerOf(one("dialog.keys"));
      keysAct = one("dialog.keys [name=keys]").checked;
    },
    download: () => transport.download(), load: () => one(".load").click(),
    close() {
      isOpen = false;
      review.hidden = true;
      document.body.classList.remove("reviewing");
    },
  };
  const KEYS = {
    r: "right", w: "wrong", f: "fix", s: "skip", " ": "skip", u: "undo", e: "enlarge", enter: "enlarge", g: "group",
    arrowleft: "before", arrowright: "after", "?": "keys", "shift+w": "all-wrong", "shift+r": "all-right",
  };

  review.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.suggestion) suggest(Number(button.dataset.suggestion));
    else ACTS[button?.dataset.act]?.();
  });
  fixing.addEventListener("submit", (event) => {
    event.preventDefault();
    saveFix();
  });
  fixing.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") closeFix();
    if (event.key !== "Enter" || event.shiftKey || event.target !== fixing.elements.text) return;
    event.preventDefault();
    saveFix();
  });
  document.addEventListener("keydown", (event) => {
    if (!isOpen || event.defaultPrevented) return;
    const isOtherScript = event.key.length === 1 && event.key > "~";
    let key = (isOtherScript ? event.code.replace("Key", "") : event.key).toLowerCase(); // Caps Lock is no Shift
    const dialog = one("dialog[open]");
    if (dialog) {
      if (!dialog.matches(".large") || (key !== "e" && key !== "enter")) return;
      event.preventDefault();
      dialog.close();
      return;
    }
    if (event.target.closest("input, textarea, select")) return;
    if (key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) key = "u";
    else if (event.ctrlKey || event.metaKey || event.altKey || (!keysAct && key.length === 1)) return;
    if ((key === "enter" || key === " ") && event.target.closest("button, a, summary")) return;
    if (event.shiftKey && /^[a-z]$/.test(key)) key = "shift+" + key;
    if (!(key in KEYS) && !/^[1-9]$/.test(key)) return;
    event.preventDefault();
    if (event.repeat && !key.startsWith("arrow")) return; // a key that is held down marks one pair
    if (key in KEYS) ACTS[KEYS[key]]();
    else suggest(Number(key) - 1);
  });
  for (const select of [order, group]) {
    select.addEventListener("change", () => {
      // a part of the sample is none
      if (select === order && order.value === "sample") group.value = "0";
      if (select === group && group.value !== "0" && order.value === "sample") order.value = "worst";
      settings.set("order " + place, order.value);
      settings.set("group " + place, JSON.stringify([chosen().group, chosen().text]));
      ahead = [];
      mine.clear();
      next(0);
    });
    select.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" && event.key !== "Enter") return;
      select.blur(); // the pair may not be there yet
      focusPair();
    });
  }
  one(".load").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      say(number(transport.load(await file.text())) + " marks were added from " + visible(file.name) + ".");
      ahead = [];
      next(0);
    } catch (error) {
      say(visible(file.name) + " is no file of marks: " + error.message + ".");
    }
    event.target.value = "";
  });

  return async function open() {
    isOpen = true;
    review.hidden = false;
    document.body.classList.add("reviewing");
    const kept = settings.get("order " + place);
    order.closest("label").hidden = order.options.length < 2;
    if ([...order.options].some((option) => option.value === kept)) order.value = kept;
    for (const act of ["download", "load", "close"]) one("[data-act=" + act + "]").hidden = !transport.keeps;
    if (author()) showName(author());
    else await askName();
    try {
      groups = await transport.groups();
      showGroups(groups, settings.get("group " + place));
    } catch { /* it was told */ }
    await next(0);
  };
}
