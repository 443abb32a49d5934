// Pairs from the server of this page, and marks to it. A mark waits in the browser until the server has answered that it
// is on the disk; one that is sent again counts once.
function serverTransport(place, hear) {
  const unsent = keptMarks("clip-itm unsent " + place + " ");
  const refused = keptMarks("clip-itm refused " + place + " ");
  const MOST_MARKS = 500, MOST_CHARACTERS = 300_000, AGAIN = 2000;
  let trouble = "", isSending = false, atOnce = MOST_MARKS;

  async function ask(path, query, options) {
    let answer;
    try {
      answer = await fetch("review/" + path + "?" + new URLSearchParams(query), options);
    } catch {
      tell("The server does not answer: start it again with the same command.");
      throw new Error("no answer");
    }
    const content = await answer.json().catch(() => ({ why: "its answer was " + answer.status }));
    if (answer.ok) return content;
    const error = Object.assign(new Error(content.why), { status: answer.status, pairs: content.pairs });
    if (path !== "marks") tell("The server cannot show this: " + error.message + ".");
    throw error;
  }

  function tell(why) {
    const waiting = unsent.all().length, lost = refused.all();
    const parts = why ? [why] : [];
    if (why && waiting) {
      parts.push((waiting === 1 ? "1 mark is" : waiting + " marks are")
        + (unsent.isKept ? " kept in this browser" : " kept in this window, which has to stay open")
        + " and will be sent.");
    }
    if (lost.length) {
      parts.push((lost.length === 1 ? "1 mark was" : lost.length + " marks were") + " refused: " + lost[0].why
        + ". Download what was not saved.");
    }
    trouble = why;
    hear.trouble(parts.join(" "), (why ? waiting : 0) + lost.length > 0);
  }

  function nextBatch() {
    const batch = [];
    let size = 0;
    for (const mark of unsent.all().slice(0, atOnce)) {
      size += JSON.stringify(mark).length;
      if (batch.length && size > MOST_CHARACTERS) break;
      batch.push(mark);
    }
    return batch;
  }

  async function flush() {
    if (isSending) return;
    isSending = true;
    try {
      for (let batch = nextBatch(); batch.length; batch = nextBatch()) await post(batch);
    } catch (error) {
      if (error.status) tell("Marks cannot be saved: " + error.message + ".");
    } finally {
      isSending = false;
    }
  }

  async function post(batch) {
    const headers = { "Content-Type": "application/json" };
    try {
      const query = new URLSearchParams(hear.query());
      query.set("place", place);
      const answer = await ask("marks", query, { method: "POST", headers, body: JSON.stringify(batch) });
      batch.forEach(unsent.remove);
      atOnce = MOST_MARKS;
      heard();
      hear.saved(batch, answer);
    } catch (error) {
      // nothing of a batch is written if one of it cannot be
      if (error.status === 422 && batch.length > 1) {
        atOnce = 1;
      } else if (error.status === 422 || (error.status === 404 && error.pairs)) {
        for (const mark of batch.filter((one) => !error.pairs || error.pairs.includes(one.pair))) {
          refused.add({ ...mark, why: error.message });
          unsent.remove(mark);
        }
        tell("");
      } else {
        throw error;
      }
    }
  }

  function heard() {
    if (!trouble) return;
    tell("");
    hear.back();
  }

  setInterval(async () => {
    if (unsent.all().length) await flush();
    else if (document.hidden && !trouble) return;
    try {
      const found = await ask("state", hear.query());
      if (!unsent.all().length) heard();
      hear.watched(found);
    } catch { /* it was told */ }
  }, AGAIN);
  tell("");

  return {
    pairs: (query) => ask("pairs", query),
    groups: async () => (await ask("groups", {})).groups,
    members: (query) => ask("members", query),
    photo: (pair, size) => pair.has_photo ? "review/photos/" + pair.pair + "/" + size : null,
    // in what was not sent the last word counts
    isMarked(pair) {
      const own = unsent.all().filter((mark) => mark.pair === pair);
      return own.length > 0 && own.at(-1).mark !== "undone";
    },
    send(marks) {
      marks.forEach(unsent.add);
      return flush();
    },
    download() {
      const lost = refused.all();
      download([...lost.map(({ why, ...mark }) => mark), ...unsent.all()], "marks-not-saved.jsonl");
      lost.forEach(refused.remove);
      tell(trouble);
    },
  };
}
