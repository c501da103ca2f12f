// What a model says, as text: blocks of code stand apart, and nothing else of it means anything.

import { make } from "./dom.js";

const FENCE = /^```[^\n`]*$/m;

export function showAnswer(element, answer, thought = "") {
  const parts = answer.split(FENCE);
  const children = parts.map((part, index) => (index % 2 ? make("pre", {}, make("code", {}, part.replace(/^\n|\n$/g, ""))) : part));
  if (thought) children.unshift(make("p", { class: "thought" }, thought));
  element.replaceChildren(...children.filter((child) => child !== ""));
}
