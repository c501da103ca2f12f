// A bar for each memory: the budget, what each model has of it, what others have, what is free.

import { byId, make, setText, showKeyed } from "./dom.js";
import { size } from "./format.js";

const COLOURS = 6;

export function showDevices(status) {
  const colours = new Map(status.models.map((model, index) => [model.id, index % COLOURS]));
  showKeyed(byId("devices"), status.devices, (device) => device.name, create, (element, device) => {
    const shares = sharesOf(device, status.models);
    const whole = Math.max(device.budget_bytes, device.reserved_bytes, 1);
    setText(element.querySelector("h3"), device.paused ? `${device.name} (handed over)` : device.name);
    const free = Math.max(0, device.budget_bytes - device.reserved_bytes);
    setText(element.querySelector(".soft"),
      `${size(device.reserved_bytes)} of ${size(device.budget_bytes)} reserved, ${size(free)} left` +
      (device.others_bytes ? `; other programs have ${size(device.others_bytes)}` : ""));
    const bar = element.querySelector(".bar");
    bar.setAttribute("aria-label", shares.map((share) => `${share.name} ${size(share.bytes)}`).join(", ") || "nothing reserved");
    showKeyed(bar, shares, (share) => share.name, () => make("span"), (part, share) => {
      part.className = share.id === undefined ? "others" : `share-${colours.get(share.id)}`;
      part.style.width = `${(100 * share.bytes) / whole}%`;
      part.title = `${share.name}: ${size(share.bytes)}`;
      setText(part, share.name);
    });
  });
}

function create() {
  return make("div", { class: "device" },
    make("div", { class: "row" }, make("h3"), make("p", { class: "soft" })),
    make("div", { class: "bar", role: "img" }));
}

function sharesOf(device, models) {
  const shares = [];
  for (const model of models) {
    const bytes = model.workers.reduce((total, worker) => total + (worker.reserved_bytes[device.name] ?? 0) - (device.name === "RAM" ? worker.shared_bytes ?? 0 : 0), 0);
    if (bytes > 0) shares.push({ name: model.id, id: model.id, bytes });
  }
  const rest = device.reserved_bytes - shares.reduce((total, share) => total + share.bytes, 0);
  if (rest > 0) shares.push({ name: "on its way back, shared, or a spare worker", bytes: rest });
  return shares;
}
