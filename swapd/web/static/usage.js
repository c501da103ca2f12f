// Past requests: the newest one by one, and sums as bars.

import { get } from "./api.js";
import { byId, drawn, make, setText, showKeyed } from "./dom.js";
import { clock, count, duration } from "./format.js";

const ROWS = 50, BARS = 20;
const WIDTH = 640, LINE = 26, LABEL = 170, FIGURE = 90;

export async function showActivity() {
  const { rows } = await get(`/swapd/v1/activity?limit=${ROWS}`);
  showKeyed(byId("activity"), rows, (row) => `${row.request_id} ${row.ended_at}`, () => make("tr"), (element, row) => {
    if (element.children.length) return;
    const figure = (text) => make("td", { class: "number" }, text);
    element.append(
      make("td", {}, clock(row.ended_at)), make("td", {}, row.model), make("td", {}, row.client), make("td", {}, `${row.status}`),
      figure(count(row.prompt_tokens)), figure(count(row.completion_tokens)), figure(duration(row.waited_s)),
      figure(duration(row.first_token_s)), figure(duration(row.total_s)));
  });
}

export async function showUsage() {
  const by = byId("usage-by").value, since = byId("usage-since").value;
  const usage = await get(`/swapd/v1/usage?by=${by}&since=${since}`);
  const rows = by === "day" ? usage.rows.slice(-BARS) : usage.rows.slice(0, BARS);
  byId("usage").replaceChildren(rows.length ? chart(rows) : make("p", { class: "soft" }, "no requests in this time"));
}

function chart(rows) {
  const most = Math.max(1, ...rows.map((row) => row.prompt_tokens + row.completion_tokens));
  const room = WIDTH - LABEL - FIGURE;
  const svg = drawn("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${LINE * (rows.length + 1)}`, role: "img" });
  svg.append(drawn("title", {}, rows.map((row) => `${row.name}: ${row.requests} requests, ${row.prompt_tokens} tokens of prompts, ${row.completion_tokens} of answers`).join("; ")));
  rows.forEach((row, index) => {
    const y = LINE * index, prompt = (room * row.prompt_tokens) / most, answer = (room * row.completion_tokens) / most;
    const name = row.name.length > 22 ? `${row.name.slice(0, 21)}…` : row.name;
    svg.append(
      drawn("text", { x: 0, y: y + 17 }, name || "–"),
      drawn("rect", { class: "prompt", x: LABEL, y: y + 5, width: prompt, height: 15 }),
      drawn("rect", { class: "answer", x: LABEL + prompt, y: y + 5, width: answer, height: 15 }),
      drawn("text", { class: "soft", x: LABEL + prompt + answer + 6, y: y + 17 }, `${count(row.requests)}×`));
  });
  const y = LINE * rows.length;
  svg.append(
    drawn("rect", { class: "prompt", x: LABEL, y: y + 5, width: 15, height: 15 }), drawn("text", { class: "soft", x: LABEL + 20, y: y + 17 }, "tokens of prompts"),
    drawn("rect", { class: "answer", x: LABEL + 160, y: y + 5, width: 15, height: 15 }), drawn("text", { class: "soft", x: LABEL + 180, y: y + 17 }, "of answers"));
  return svg;
}
