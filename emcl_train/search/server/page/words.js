// Elements and texts of the page. Texts are only ever set as text.

export const $ = (id) => document.getElementById(id);
export const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
};

// Control characters and marks that turn the direction of writing, which names of files may have, as escapes.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
export const visible = (text) =>
  text.replace(HIDDEN, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
export const quoted = (text) => make("bdi", {}, visible(text));

export const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
export const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60];
  const rest = `${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}${tenths % 10 ? `.${tenths % 10}` : ""}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
};
export const span = ({ start, end }) => `${clock(start)}–${clock(end)}`;
export const score = (value) => value.toFixed(3).replace("-", "−");

// What the server says to a question; an error is its sentence.
export const ask = async (address, parameters, signal) => {
  let answer;
  try {
    answer = await fetch(`${address}?${new URLSearchParams(parameters)}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  const value = await answer.json().catch(() => ({ error: `The server has answered with ${answer.status}.` }));
  if (!answer.ok) throw new Error(value.error);
  return value;
};
