// Making and changing elements. Text is only ever set as text: nothing here or elsewhere reads HTML.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

export function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shows a list by key, and leaves what stays where it is: focus, selections and scrolling survive.
export function showKeyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    known.delete(key);
    if (child === undefined) {
      child = create(item);
      child.dataset.key = key;
    }
    if (child !== before) parent.insertBefore(child, before);
    else before = before.nextElementSibling;
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

export function showOptions(select, names) {
  const chosen = select.value;
  showKeyed(select, names, (name) => name, (name) => make("option", { value: name }, name), () => {});
  if (names.includes(chosen)) select.value = chosen;
}
