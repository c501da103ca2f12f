// A card for each model: its state and queue, what it takes, why it left, and what can be done with it.

import { Refused, modelPath, post } from "./api.js";
import { byId, make, setText, showKeyed } from "./dom.js";
import { duration, size, sum } from "./format.js";

const GONE = ["unloaded", "asleep"];
const SPEED_WINDOW_MS = 60000;
const speeds = new Map();
const troubles = new Map();

export function noteEnded(request) {
  if (request.completion_tokens && request.service_s > 0) {
    speeds.set(request.model, { at: Date.now(), perSecond: request.completion_tokens / request.service_s });
  }
}

export function showModels(status, { choose, changed }) {
  showKeyed(byId("models"), status.models, (model) => model.id, (model) => create(model, choose, changed), update);
}

function create(model, choose, changed) {
  const button = (action, label, run) => {
    const element = make("button", { type: "button", "data-action": action, "aria-label": `${label} ${model.id}` }, label);
    element.addEventListener("click", run);
    return element;
  };
  const doing = (action) => async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    troubles.delete(model.id);
    changed();
    try {
      await post(modelPath(model.id, action));
    } catch (error) {
      troubles.set(model.id, error instanceof Refused ? error.message : `the daemon cannot be reached: ${error.message}`);
    } finally {
      pressed.disabled = false;
      changed();
    }
  };
  return make("li", { class: "card model" },
    make("div", { class: "row" }, make("h3"), make("span", { class: "state" })),
    make("p", { class: "soft what" }),
    make("progress", { max: "1", "aria-label": `Loading ${model.id}` }),
    make("dl", {},
      ...["running", "waiting", "tokens/s", "memory"].map((name) => make("div", {}, make("dt", {}, name), make("dd", { "data-figure": name })))),
    make("p", { class: "why" }),
    make("p", { class: "trouble", role: "alert" }),
    make("div", { class: "row" },
      button("load", "Load", doing("load")), button("unload", "Unload", doing("unload")),
      button("pin", "Pin", doing("pin")), button("unpin", "Unpin", doing("unpin")),
      button("chat", "Chat", () => choose("chat", model.id)), button("logs", "Logs", () => choose("logs", model.id))));
}

function update(element, model) {
  const find = (selector) => element.querySelector(selector);
  const figure = (name, text) => setText(find(`[data-figure="${name}"]`), text);
  setText(find("h3"), model.pin ? `${model.id} (pinned)` : model.id);
  const state = find(".state");
  setText(state, model.state);
  state.className = `state ${model.state.split(" ")[0]}`;
  const used = model.last_used_s === null ? "" : `; used ${duration(model.last_used_s)} ago`;
  setText(find(".what"), `${model.description || model.backend}${model.n_ctx ? `, context ${model.n_ctx.toLocaleString()}` : ""}${used}`);
  figure("running", `${model.running}`);
  figure("waiting", `${model.waiting}`);
  const speed = speeds.get(model.id);
  figure("tokens/s", speed && Date.now() - speed.at < SPEED_WINDOW_MS ? speed.perSecond.toFixed(1) : "–");
  const reserved = model.workers.reduce((total, worker) => total + sum(worker.reserved_bytes), 0);
  figure("memory", reserved ? size(reserved) : `(${size(sum(model.footprint.estimated_bytes ?? {}))})`);
  const loading = model.workers.find((worker) => ["launching", "loading"].includes(worker.state));
  const progress = find("progress");
  progress.hidden = loading === undefined;
  if (loading !== undefined) {
    if (loading.progress === null) progress.removeAttribute("value");
    else progress.value = loading.progress;
  }
  const why = [];
  if (model.waits) why.push(model.waits);
  if (model.last_eviction) why.push(`last eviction, ${duration(model.last_eviction.ago_s)} ago: ${model.last_eviction.why}`);
  setText(find(".why"), why.join("; "));
  setText(find(".trouble"), troubles.get(model.id) ?? model.error ?? "");
  find('[data-action="load"]').hidden = !GONE.includes(model.state);
  find('[data-action="unload"]').hidden = model.state === "unloaded";
  find('[data-action="pin"]').hidden = model.pin;
  find('[data-action="unpin"]').hidden = !model.pin;
}
