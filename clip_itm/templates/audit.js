const form = document.getElementById("filter"), list = document.getElementById("pairs");
const cards = [...list.children].map((card) => ({
  card,
  rank: Number(card.dataset.rank),
  probability: Number(card.dataset.probability),
  image: Number(card.dataset.image),
  truth: card.dataset.truth,
  words: (card.querySelector(".caption").textContent + " " + card.querySelector(".ids").textContent).toLowerCase(),
}));
const orders = {
  rank: (one, other) => one.rank - other.rank,
  least: (one, other) => other.rank - one.rank,
  image: (one, other) => one.image - other.image || one.rank - other.rank,
  caption: (one, other) => one.words.localeCompare(other.words),
};
const probabilities = cards.map((one) => one.probability).sort((one, other) => one - other);
function show() {
  const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
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
