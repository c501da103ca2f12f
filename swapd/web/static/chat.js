// A playground: one conversation with one model at a time, streamed.

import { NeedsKey, ask, events } from "./api.js";
import { byId, make } from "./dom.js";
import { showAnswer } from "./text.js";

const turns = [];
let running = null;

export function startChat(needKey) {
  const form = byId("chat-form"), text = byId("chat-text");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null && text.value.trim()) {
      send(text.value, needKey);
      text.value = "";
    }
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  byId("chat-stop").addEventListener("click", () => running?.abort());
  byId("chat-clear").addEventListener("click", () => {
    running?.abort();
    turns.length = 0;
    byId("chat-log").replaceChildren();
    text.focus();
  });
}

async function send(words, needKey) {
  turns.push({ role: "user", content: words });
  say("user", words);
  const shown = say("assistant", "…");
  const answer = { text: "", thought: "" };
  running = new AbortController();
  toggle();
  try {
    await stream(answer, shown);
    if (!answer.text && !answer.thought) shown.textContent = "(an empty answer)";
  } catch (error) {
    if (error instanceof NeedsKey) needKey(error.message);
    const why = running.signal.aborted ? "stopped" : error.message;
    shown.append(make("p", { class: "trouble", role: "alert" }, why));
  } finally {
    if (answer.text) turns.push({ role: "assistant", content: answer.text });
    else turns.pop();
    running = null;
    toggle();
  }
}

async function stream(answer, shown) {
  const body = { model: byId("chat-model").value, messages: turns, stream: true };
  const response = await ask("/v1/chat/completions", { method: "POST", body, signal: running.signal });
  let isWhole = false;
  for await (const data of events(response)) {
    if (data === "[DONE]") {
      isWhole = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const delta = chunk.choices?.[0]?.delta ?? {};
    answer.text += delta.content ?? "";
    answer.thought += delta.reasoning_content ?? "";
    showAnswer(shown, answer.text, answer.thought);
    const log = byId("chat-log");
    log.scrollTop = log.scrollHeight;
  }
  if (!isWhole) throw new Error("the answer broke off");
}

function say(role, words) {
  const element = make("div", { class: `message ${role}` }, words);
  const log = byId("chat-log");
  log.append(element);
  log.scrollTop = log.scrollHeight;
  return element;
}

function toggle() {
  byId("chat-send").hidden = running !== null;
  byId("chat-stop").hidden = running === null;
}
