// What the review shows: a pair, its mark, how far one has come, and questions. It decides nothing.
const review = document.getElementById("review");
const one = (selector) => review.querySelector(selector);
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const DID = { right: "right", wrong: "wrong", fixed: "fixed", skipped: "skipped", undone: "taken back" };
const SUGGESTIONS = 3;

// Text of others is shown, never obeyed: as clip_itm/visible.py does it.
const visible = (text) => String(text).replace(CONTROL, (letter) =>
  "\\u" + letter.charCodeAt(0).toString(16).padStart(4, "0"));
const short = (text) => visible(text.length > 80 ? text.slice(0, 79) + "…" : text).replace(/\s+/g, " ");
const number = (value) => value.toLocaleString("en-US");
const pairsOf = (count) => number(count) + (count === 1 ? " pair" : " pairs");
const percent = (value) => value > 0 && value < 0.001 ? "< 0.1 %" : (100 * value).toFixed(1) + " %";
const groupName = (group) => visible(group.group) + (group.text ? ": “" + short(group.text) + "”" : "");

function say(text) {
  one(".said").textContent = text;
}

function saidOf(marks) {
  const [first] = marks;
  const what = marks.every((mark) => mark.mark === first.mark) ? DID[first.mark] : "marked";
  if (marks.length > 1) return "✓ " + pairsOf(marks.length) + ": " + what;
  const text = first.mark === "fixed" ? first.text : first.caption;
  return "✓ " + what + (text ? ": “" + short(text) + "”" : "");
}

function element(name, properties, ...content) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...content);
  return made;
}

function showTrouble(text) {
  const place = one(".trouble");
  if (place.textContent !== text) place.textContent = text; // said aloud once
  place.hidden = !text;
}

// `found`: the state of the list and of all pairs. The worst first are counted up to the line between wrong and right.
function showProgress(found, list) {
  const isAll = !list.group && list.order !== "sample" && found.suspects.pairs > 0;
  const part = isAll ? found.suspects : found.list;
  const name = isAll ? "suspects" : list.order === "sample" ? "of the sample" : list.group ? "of the group" : "pairs";
  const all = part.pairs === found.all.pairs ? "" : " (" + number(found.all.marked) + " of all " + number(found.all.pairs) + ")";
  const left = found.left.wrong;
  one("progress").max = Math.max(part.pairs, 1);
  one("progress").value = part.marked;
  one(".count").textContent = number(part.marked) + " of " + number(part.pairs) + " " + name + " marked" + all + "; about "
    + number(Math.round(left)) + " wrong ones are left (" + percent(left / Math.max(found.left.pairs, 1)) + " of the rest)";
  const wrong = (found.marks.wrong || 0) + (found.marks.fixed || 0);
  one(".count").title = number(found.marks.right || 0) + " right, " + number(wrong) + " wrong ("
    + number(found.marks.fixed || 0) + " of them fixed), " + number(found.marks.skipped || 0) + " skipped";
  one(".bulk").hidden = !list.group || found.list.marked === found.list.pairs;
}

function showPair(pair, small, why) {
  one(".looked-at").hidden = !pair;
  one(".nothing").hidden = Boolean(pair) || !why;
  one(".nothing").textContent = why;
  for (const button of review.querySelectorAll(".acts button:not([data-act=undo])")) button.ariaDisabled = Boolean(why);
  one("form.fix").hidden = true;
  if (!pair) return;
  one(".caption").textContent = visible(pair.caption);
  one(".figures").textContent = [number(pair.rank), "probability " + (pair.probability < 0.001 ? "< 0.001"
    : pair.probability.toFixed(3)), ...pair.groups.map(visible)].join(" · ");
  one(".ids").textContent = "photo " + visible(pair.image_id);
  one(".photo").classList.toggle("gone", !small);
  one(".photo img").alt = "photo " + visible(pair.image_id);
  if (small) one(".photo img").src = small;
  else one(".photo img").removeAttribute("src");
  const offered = pair.suggestions.slice(0, SUGGESTIONS);
  one(".suggestions").hidden = !offered.length;
  one(".suggestions").replaceChildren(...offered.map((text, k) => {
    const key = element("kbd", { ariaHidden: "true" }, String(k + 1));
    const button = element("button", { type: "button" }, key, " " + visible(text));
    button.dataset.suggestion = k;
    button.setAttribute("aria-keyshortcuts", k + 1);
    return element("li", {}, button);
  }));
  showMark(pair.mark);
}

// Why there is no pair to look at, and what to do then.
function nothingLeft(found) {
  const marked = found.list.pairs;
  if (!marked) return "There are no pairs in this list: choose another one.";
  const rest = found.all.pairs > found.all.marked ? "Choose another order or group to go on. " : "clip-itm audit --marks heeds them. ";
  return (marked === 1 ? "The pair of this list is marked. " : "All " + pairsOf(marked) + " of this list are marked. ") + rest
    + "Undo takes the last mark back; ← and → go through the pairs.";
}

function showMark(mark) {
  one(".mark").hidden = !mark;
  if (!mark) return;
  one(".mark").className = "mark " + mark.mark;
  one(".mark").textContent = "marked " + DID[mark.mark] + (mark.author ? " by " + visible(mark.author) : "")
    + (mark.text ? ": “" + visible(mark.text) + "”" : "");
}

function showGroups(groups, kept) {
  const select = one("[name=group]");
  select.closest("label").hidden = !groups.length;
  select.replaceChildren(select.options[0], ...groups.map((group, k) =>
    element("option", { value: k + 1 }, groupName(group) + " (" + number(group.pairs) + ")")));
  select.value = String(groups.findIndex((group) => JSON.stringify([group.group, group.text]) === kept) + 1);
}

function showName(author) {
  one("[data-act=author]").textContent = "marks by " + visible(author);
  one("[data-act=author]").setAttribute("aria-label", "marks by " + visible(author) + ": change the name");
}

const focusPair = () => one(".looked-at").focus({ preventScroll: true });

// What a dialog was closed with: the value of its button, or "".
function answerOf(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    focusPair();
    resolve(dialog.returnValue);
  }, { once: true }));
}

function askForGroup(count, more, group, kind, examples) {
  const some = more ? "the first " + number(count) + " of " + pairsOf(count + more) : count === 1 ? "the pair" : "all " + pairsOf(count);
  one(".question").textContent = "Mark " + some + " of “" + groupName(group) + "” without a mark as " + kind + "?";
  one(".bulk-examples").replaceChildren(...examples.map(({ src, caption }) =>
    element("li", {}, src ? element("img", { alt: "", src }) : "", visible(caption))));
  one(".yes").textContent = "Mark " + pairsOf(count) + " " + kind;
  return answerOf(one(".bulk-question"));
}

function enlarge(src) {
  one(".large img").src = src;
  one(".large img").alt = one(".photo img").alt;
  answerOf(one("dialog.large"));
}

one(".photo img").addEventListener("error", () => one(".photo").classList.add("gone"));
