// The results: cards in one list or in two, and how one goes from card to card.

import { $, clock, count, make, quoted, score, span, visible } from "/page/words.js";

export const lists = $("lists");
const status = $("status");
const moments = new WeakMap();
// What a card shows.
export const momentOf = (card) => moments.get(card);

export const picture = (moment, words = span(moment)) => {
  const image = make("img", { alt: "", src: moment.thumbnail, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.classList.add("blank"));
  return make("span", { class: "frame" }, image, make("span", { class: "time" }, words));
};
const card = (moment, other) => {
  const [folder, name] = [moment.file.slice(0, moment.file.lastIndexOf("/") + 1), moment.file.split("/").pop()];
  const value = moment.score === null ? "" : score(moment.score);
  const button = make(
    "button",
    { type: "button", class: "card", tabindex: "-1", "data-id": moment.id },
    picture(moment),
    make(
      "span",
      { class: "line" },
      make("span", { class: "file" }, quoted(name)),
      make("span", { class: "score" }, value),
    ),
    other ? make("span", { class: "other" }, other) : null,
  );
  button.title = visible(folder + name);
  const words = [visible(name), `from ${clock(moment.start)} to ${clock(moment.end)}`];
  if (value) words.push(`score ${value}`);
  if (moment.below) words.push("below the cut-off");
  if (other) words.push(other);
  button.setAttribute("aria-label", words.join(", "));
  moments.set(button, moment);
  return make("li", { class: moment.below ? "below" : "" }, button);
};

const summary = ({ results, cutoff }) => {
  if (!results.length) return "No moment was found.";
  const words = count(results.length, "moment");
  if (cutoff === null) return `${words}.`;
  const fit = results.filter((moment) => !moment.below).length;
  return `${words}, ${fit === results.length ? "all" : fit} above the cut-off of ${score(cutoff)}.`;
};
// Where each moment stands in the other ranking.
const places = (results) => new Map(results.map((moment, place) => [moment.id, place + 1]));
const cards = (found, others, title) => {
  const items = [];
  for (const moment of found.results) {
    if (moment.below && found.fits && !items.some((item) => item.className === "rule")) {
      const words = `below the cut-off of ${score(found.cutoff)}: 95 % of unrelated queries stay under it`;
      items.push(make("li", { class: "rule" }, words));
    }
    const there = others ? others.get(moment.id) : null;
    items.push(card(moment, others ? (there ? `place ${there} in ${title}` : `not in ${title}`) : ""));
  }
  return make("ul", { class: "cards" }, ...items);
};

// Nothing is asked: say what can be.
export const welcome = () => {
  const words = make("p", { class: "welcome" });
  words.append(
    make("strong", {}, "Describe what is to be seen"),
    ", as a caption would. The moments that fit best come first, and each plays at its second.",
  );
  lists.className = "";
  lists.setAttribute("aria-busy", "false");
  lists.replaceChildren(words);
  status.textContent = "";
  status.className = "";
};
// Show the answers of one ranking, or of both.
export const draw = (found) => {
  const both = found.length > 1;
  lists.className = both ? "both" : "";
  status.className = "";
  if (!both) {
    const [one] = found;
    status.textContent = one.said || summary(one);
    status.className = one.fits === false ? "nothing" : "";
    lists.replaceChildren(cards(one));
  } else {
    const titles = ["Refined", "Plain"];
    status.textContent = titles.map((title, n) => `${title}: ${found[n].said || summary(found[n])}`).join(" ");
    lists.replaceChildren(
      ...found.map((one, n) =>
        make(
          "section",
          {},
          make("h2", {}, titles[n]),
          make("p", one.fits === false ? { class: "nothing" } : {}, one.said || summary(one)),
          cards(one, places(found[1 - n].results), titles[1 - n].toLowerCase()),
        ),
      ),
    );
  }
  // The live region says it; the sections show it.
  status.classList.toggle("unseen", both);
  enter(lists.querySelector(".card"));
};
export const fail = (error) => {
  status.textContent = error.message;
  status.className = "nothing";
  lists.replaceChildren();
};

// One card at a time is in the order of Tab, and arrows go from card to card.

export const all = () => [...lists.querySelectorAll(".card")];
export const enter = (one) => {
  for (const other of all()) other.tabIndex = other === one ? 0 : -1;
};
export const focusOn = (one) => {
  if (!one) return;
  enter(one);
  one.focus({ preventScroll: true });
  one.scrollIntoView({ block: "nearest" });
};
const centre = (one) => {
  const box = one.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};
export const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
export const nearest = (from, [right, down]) => {
  const [x, y] = centre(from);
  let best = null;
  let least = Infinity;
  for (const one of all()) {
    const [dx, dy] = [centre(one)[0] - x, centre(one)[1] - y];
    const [along, beside] = right ? [right * dx, Math.abs(dy)] : [down * dy, Math.abs(dx)];
    if (along < 8 || (right && beside > from.offsetHeight / 2)) continue;
    const cost = along + 3 * beside;
    if (cost < least) [best, least] = [one, cost];
  }
  // A row goes on in the next one.
  if (best || down) return best;
  const order = all().filter((one) => one.closest(".cards") === from.closest(".cards"));
  return order[order.indexOf(from) + right] || null;
};
