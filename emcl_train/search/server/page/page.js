// The page of a library: search as one types, play a moment at its second. Texts are only ever set as text.

import { makePlayer } from "/page/player.js";
import { WAYS, all, draw, enter, fail, focusOn, lists, momentOf, nearest, welcome } from "/page/results.js";
import { $, ask, clock, count, make, quoted, visible } from "/page/words.js";

const AT_ONCE = 24;
const MOST = 96;
const TYPING = 160; // milliseconds after the last letter, before a search is asked for
const SLOW = 350; // after which it is shown that something takes long

const [query, ranking, more] = ["query", "ranking", "more"].map($);
let library = null;
let learning = null; // the answer to what the library is, while it is waited for

// ---- What is asked, and the address that says it. ----

const state = { q: "", like: "", ranking: "refined", play: "" };
const read = () => {
  const given = new URLSearchParams(location.search);
  state.q = (given.get("q") || "").slice(0, query.maxLength);
  state.like = given.get("like") || "";
  state.play = given.get("play") || "";
  const wanted = given.get("ranking");
  state.ranking = ["plain", "both"].includes(wanted) ? wanted : "refined";
  query.value = state.q;
};
const keep = (anew) => {
  const kept = new URLSearchParams();
  if (state.q) kept.set("q", state.q);
  if (state.like) kept.set("like", state.like);
  if (state.ranking !== "refined") kept.set("ranking", state.ranking);
  if (state.play) kept.set("play", state.play);
  const address = kept.size ? `/?${kept}` : "/";
  if (address === location.pathname + location.search) return;
  history[anew ? "pushState" : "replaceState"](null, "", address);
};
const player = makePlayer({
  changed: (id) => {
    state.play = id;
    keep(false);
  },
  like: (id) => like(id),
});

// ---- Searching. ----

let shown = AT_ONCE;
let asking = null;
let waiting = 0;

// Ask, and show what comes; an answer to an earlier question is dropped.
const update = async () => {
  clearTimeout(waiting);
  if (!library) return begin(); // what is typed before is searched for when the library is known
  if (asking) asking.abort();
  const mine = (asking = new AbortController());
  document.title = state.q ? `${state.q} – ${library.name}` : library.name;
  showExample();
  if (!state.q && !state.like) {
    welcome();
    more.hidden = true;
    return;
  }

  const slow = setTimeout(() => lists.setAttribute("aria-busy", "true"), SLOW);
  try {
    if (!library.refines) state.ranking = "refined";
    const refines = { refined: [library.refines], plain: [false], both: [true, false] }[state.ranking];
    const address = state.like ? "/api/like" : "/api/search";
    const what = state.like ? { id: state.like } : { q: state.q };
    const found = await Promise.all(
      refines.map((refine) => ask(address, { ...what, k: shown, refine: refine ? 1 : 0 }, mine.signal)),
    );
    if (mine !== asking) return;
    draw(found);
    more.hidden = shown >= MOST || found.every((one) => one.results.length < shown);
    player.mark();
  } catch (error) {
    if (error.name === "AbortError" || mine !== asking) return;
    fail(error);
    more.hidden = true;
  } finally {
    clearTimeout(slow);
    if (mine === asking) lists.setAttribute("aria-busy", "false");
  }
};
const search = (anew) => {
  shown = AT_ONCE;
  keep(anew);
  return update();
};

const showExample = () => {
  const place = $("example");
  place.hidden = !state.like;
  if (!state.like) return;
  const remove = make("button", { type: "button" }, state.q ? `Back to “${visible(state.q).slice(0, 60)}”` : "Remove");
  remove.addEventListener("click", () => {
    state.like = "";
    search(true);
    query.focus();
  });
  const like = state.like;
  const name = make("span", {}, "Moments like the one that was chosen");
  place.replaceChildren(name, remove);
  ask("/api/neighbours", { id: like, around: 1 })
    .then(({ of }) => {
      if (state.like === like) name.replaceChildren("Moments like ", quoted(of.file.split("/").pop()), ` at ${clock(of.start)}`);
    })
    .catch(() => {});
};
const like = (id) => {
  state.like = id;
  scrollTo({ top: 0 });
  search(true).then(() => focusOn(lists.querySelector(".card")));
};

// ---- Keys. ----

lists.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card) player.play(momentOf(card), card);
});
lists.addEventListener("focusin", (event) => event.target.matches(".card") && enter(event.target));
lists.addEventListener("keydown", (event) => {
  const from = event.target.closest(".card");
  if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
  if (WAYS[event.key]) {
    const next = nearest(from, WAYS[event.key]);
    if (next) focusOn(next);
    else if (event.key === "ArrowUp") query.focus();
  } else if (event.key === "Home") focusOn(all()[0]);
  else if (event.key === "End") focusOn(all().pop());
  else if (event.key.toLowerCase() === "m") like(from.dataset.id);
  else return;
  event.preventDefault();
});
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && all().length) {
    event.preventDefault();
    focusOn(all()[0]);
  }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input[type=search]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape" && !document.fullscreenElement) {
    if (player.moment()) player.close();
    else if (state.like) $("example").querySelector("button").click();
    else if (event.target !== query) query.focus();
    else if (query.value) {
      query.value = state.q = "";
      search(false);
    } else return;
    event.preventDefault();
  }
});

query.addEventListener("input", () => {
  state.q = query.value.trim();
  state.like = "";
  clearTimeout(waiting);
  waiting = setTimeout(() => search(false), TYPING);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.q = query.value.trim();
  state.like = "";
  search(true);
});
ranking.addEventListener("change", () => {
  state.ranking = ranking.querySelector("input:checked").value;
  search(false);
});
more.addEventListener("click", async () => {
  const before = all().length;
  shown = Math.min(MOST, shown + AT_ONCE);
  await update();
  focusOn(all()[before]);
});

// ---- The beginning, and going back. ----

const show = async () => {
  ranking.querySelector(`[value="${state.ranking}"]`).checked = true;
  const wanted = state.play;
  const played = player.moment();
  if (played && played.id !== wanted) {
    player.close();
    state.play = wanted;
  }
  await update();
  if (!wanted || (player.moment() && player.moment().id === wanted)) return;
  const card = all().find((one) => one.dataset.id === wanted);
  const { of } = await ask("/api/neighbours", { id: wanted, around: 1 }).catch(() => ({}));
  if (of) player.play(of, card || null);
};
const learn = async () => {
  try {
    library = await ask("/api/library", {});
  } catch (error) {
    fail(error);
    more.hidden = true;
    return;
  }
  $("name").replaceChildren(quoted(library.name));
  const facts = [count(library.moments, "moment"), library.cutting, visible(library.model.label)];
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  $("random").hidden = !library.model.random;
  ranking.hidden = !library.refines;
  const { damaged } = library;
  $("damaged").hidden = !damaged.count;
  $("damaged").querySelector("summary").textContent = `${count(damaged.count, "file")} could not be read`;
  $("damaged")
    .querySelector("ul")
    .replaceChildren(...damaged.files.map(({ file, reason }) => make("li", {}, quoted(file), ": ", quoted(reason))));
  await show();
};
// Where that fails, the next search begins once more.
const begin = () => {
  if (!learning) {
    learning = learn().finally(() => {
      learning = null;
    });
  }
  return learning;
};
addEventListener("popstate", () => {
  read();
  show();
});
read();
if (!state.q && !state.like && !state.play) query.focus();
begin();
