// Marks as the browser keeps them: an item for each, so that two windows overwrite nothing of each other.
function keptMarks(prefix) {
  const memory = new Map();
  let isKept = true;
  try {
    localStorage.setItem(prefix + "?", "");
    localStorage.removeItem(prefix + "?");
  } catch {
    isKept = false;
  }
  const keyOf = (mark) => [prefix + mark.time, mark.pair, mark.mark, mark.author].join(" ");
  return {
    // false: the browser keeps nothing, so that marks go with the window
    get isKept() { return isKept; },
    add(mark) {
      const text = JSON.stringify(mark);
      try {
        localStorage.setItem(keyOf(mark), text);
      } catch {
        isKept = false;
        memory.set(keyOf(mark), text);
      }
    },
    remove(mark) {
      memory.delete(keyOf(mark));
      try {
        localStorage.removeItem(keyOf(mark));
      } catch { /* it was never there */ }
    },
    // oldest first
    all() {
      const found = new Map(memory);
      try {
        for (const key of Object.keys(localStorage)) {
          if (key.startsWith(prefix)) found.set(key, localStorage.getItem(key));
        }
      } catch { /* only memory */ }
      return [...found.keys()].sort().map((key) => JSON.parse(found.get(key)));
    },
  };
}

const settings = {
  get(name) {
    try {
      return localStorage.getItem("clip-itm " + name);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem("clip-itm " + name, value);
    } catch { /* asked again next time */ }
  },
};

// Never the same twice in a browser, so that marks are told apart and stay in their order.
function timeOfMark() {
  const last = Number(settings.get("last time")) || 0;
  const time = Math.max(Date.now(), Math.max(last, timeOfMark.last || 0) + 1);
  timeOfMark.last = time;
  settings.set("last time", String(time));
  return new Date(time).toISOString().replace("Z", "+00:00");
}

// The mark that counts of each pair, as clip_itm/data/marks.py has it.
function marksOfPairs(marks) {
  const stacks = new Map();
  for (const mark of marks) {
    if (!stacks.has(mark.pair)) stacks.set(mark.pair, []);
    const stack = stacks.get(mark.pair);
    if (mark.mark !== "undone") {
      stack.push(mark);
    } else {
      const own = stack.findLastIndex((other) => other.author === mark.author);
      if (own >= 0) stack.splice(own, 1);
    }
  }
  return new Map([...stacks].filter(([, stack]) => stack.length).map(([pair, stack]) => [pair, stack.at(-1)]));
}

function download(marks, name) {
  const lines = marks.map((mark) => JSON.stringify(mark) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
