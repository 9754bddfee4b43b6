// The player: its video is the file, or a part of it that the server has made.

import { all, focusOn, picture } from "/page/results.js";
import { $, ask, clock, make, quoted, span } from "/page/words.js";

const SLOW = 350; // milliseconds after which it is said that something takes long
const AHEAD = 8; // seconds before a part ends, at which the next one is asked for
const AROUND = 2;

// A player that tells which moment it plays ("" for none), and of which one more like it is wanted.
export const makePlayer = ({ changed, like }) => {
  const [player, video, cover, said] = ["player", "video", "cover", "said"].map($);
  let opening = null; // what is being fetched for it
  let moment = null;
  let from = null; // the card that was played
  let media = null; // what the video shows: begin, end, more, part
  let goesOn = false; // past the end of the moment
  let seeks = 0; // of our own that are under way
  let frame = 0; // the picture that is waited for

  const second = () => media.begin + video.currentTime;
  const go = (to) => {
    const place = Math.max(0, to - media.begin);
    if (Math.abs(video.currentTime - place) < 1e-3) return;
    seeks += 1;
    video.currentTime = place;
  };
  const start = () =>
    video.play().catch((error) => {
      // An AbortError says that something else is shown by now.
      if (moment && error.name !== "AbortError") said.textContent = `${span(moment)} · press play`;
    });
  const mark = () => {
    for (const one of document.querySelectorAll("[data-id]")) {
      if (moment && one.dataset.id === moment.id) one.setAttribute("aria-current", "true");
      else one.removeAttribute("aria-current");
    }
  };

  // Have a part ready, and show it from a second of the file on.
  const load = async (part, to) => {
    if (opening) opening.abort();
    const mine = (opening = new AbortController());
    cover.textContent = "Opening …";
    const slow = setTimeout(() => {
      cover.textContent = "Being converted for the browser …";
      cover.hidden = false;
    }, SLOW);
    try {
      const found = await ask("/api/playing", { id: moment.id, part }, mine.signal);
      if (mine !== opening) return;
      media = { ...found, part };
      video.src = found.media;
      await new Promise((resolve, reject) => {
        const done = { once: true, signal: mine.signal };
        video.addEventListener("loadedmetadata", resolve, done);
        video.addEventListener("error", () => reject(new Error(`The browser cannot play this (${found.way}).`)), done);
        mine.signal.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
      });
      clearTimeout(slow); // what follows may wait for the browser, with nothing to say of it
      cover.hidden = true;
      said.textContent = span(moment);
      const words = found.way === "as it is" ? [] : [`${found.way}: ${found.why}`];
      if (found.muted) words.push("its sound cannot be decoded");
      $("how").hidden = !words.length;
      $("how").textContent = words.join("; ");
      seeks = 0;
      go(to);
      await start();
    } catch (error) {
      if (error.name === "AbortError" || mine !== opening) return;
      cover.textContent = error.message;
      cover.hidden = false;
      media = null;
    } finally {
      clearTimeout(slow);
    }
  };
  const playMoment = () => {
    goesOn = false;
    if (media && media.part === 0) {
      go(moment.start);
      start();
    } else load(0, moment.start);
  };
  const playOn = () => {
    if (!media) return;
    if (video.ended && !media.more) {
      said.textContent = `${span(moment)} · the film ends here`;
      return;
    }
    goesOn = true;
    if (video.ended) load(media.part + 1, media.end);
    else start();
  };

  const play = (one, button) => {
    const again = moment && moment.id === one.id && media;
    moment = one;
    from = button || from;
    changed(one.id);
    player.hidden = false;
    $("room").classList.add("open");
    mark();
    if (again) {
      playMoment();
      return;
    }

    media = null;
    goesOn = false;
    video.pause();
    video.removeAttribute("src");
    video.load();
    $("playing").replaceChildren(quoted(one.file));
    said.textContent = span(one);
    $("how").hidden = true;
    $("copies").hidden = !one.also_at.length;
    $("copies").replaceChildren("Also: ", ...one.also_at.flatMap((path, n) => [n ? ", " : "", quoted(path)]));
    load(0, one.start);
    beside(one);
    if (player.getBoundingClientRect().top < 0 || innerWidth < 1000) player.scrollIntoView({ block: "start" });
  };
  const close = () => {
    if (opening) opening.abort();
    video.pause();
    video.removeAttribute("src");
    video.load();
    player.hidden = true;
    $("room").classList.remove("open");
    moment = media = null;
    changed("");
    mark();
    focusOn(from && from.isConnected ? from : all()[0]);
  };

  const beside = async (one) => {
    const place = $("around");
    const found = await ask("/api/neighbours", { id: one.id, around: AROUND }).catch(() => ({ results: [] }));
    if (!moment || moment.id !== one.id) return;
    place.replaceChildren(
      ...found.results.map((other) => {
        const button = make("button", { type: "button", class: "card", "data-id": other.id }, picture(other, clock(other.start)));
        button.setAttribute("aria-label", `from ${clock(other.start)} to ${clock(other.end)}`);
        button.addEventListener("click", () => {
          play(other, null);
          $("around-title").scrollIntoView({ block: "nearest" });
        });
        return make("li", {}, button);
      }),
    );
    mark();
  };

  // The end of the moment is looked for with every picture; timeupdate alone comes four times a second.
  const atNextPicture = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(follow);
  };
  const follow = () => {
    if (!moment || !media || video.paused) return;
    if (!goesOn && !seeks && second() >= moment.end - 0.02) {
      video.pause();
      said.textContent = `${span(moment)} · its end`;
      return;
    }
    if (goesOn && media.more && media.end - second() < AHEAD && !media.next) {
      media.next = ask("/api/playing", { id: moment.id, part: media.part + 1 }).catch(() => null);
    }
    atNextPicture();
  };
  video.addEventListener("play", () => {
    // Who presses play where the moment has ended wants to see what follows.
    if (media && !seeks && second() >= moment.end - 0.05) goesOn = true;
    atNextPicture();
  });
  video.addEventListener("timeupdate", () => document.hidden && follow());
  video.addEventListener("seeking", () => {
    if (media && !seeks && (second() < moment.start - 0.05 || second() > moment.end + 0.05)) goesOn = true;
  });
  video.addEventListener("seeked", () => {
    seeks = Math.max(0, seeks - 1);
  });
  video.addEventListener("ended", () => {
    if (media && media.more && (goesOn || media.end < moment.end - 0.05)) load(media.part + 1, media.end);
  });
  video.addEventListener("error", () => {
    if (!media || !video.error) return;
    cover.textContent = "The browser cannot play this further.";
    cover.hidden = false;
  });
  $("again").addEventListener("click", playMoment);
  $("on").addEventListener("click", playOn);
  $("like").addEventListener("click", () => like(moment.id));
  $("close").addEventListener("click", close);

  return { play, close, mark, moment: () => moment };
};
