// A photo of a card in a dialog, as large as it is in the page or as the window allows.
const enlarged = document.getElementById("enlarged");
document.addEventListener("click", (event) => {
  const button = event.target.closest(".enlarge");
  if (!button) return;
  const [image, place] = [button.querySelector("img"), enlarged.querySelector("img")];
  place.src = image.src;
  place.alt = image.alt;
  const caption = button.parentElement.querySelector(":scope > .words > .caption");
  enlarged.querySelector("p").textContent = caption ? caption.textContent : image.alt;
  enlarged.showModal();
});
enlarged.addEventListener("click", () => enlarged.close());
