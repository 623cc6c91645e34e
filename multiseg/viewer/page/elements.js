// Small helpers around the document: text goes in as text, never as HTML.

export function byId(id) {
  return document.getElementById(id);
}

/** An element with properties, attributes ("aria-..." and "data-...") and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The parsed JSON of an address; an answer with an error raises its sentence. */
export async function getJson(path, parameters = {}, signal = undefined) {
  const answer = await get(path, parameters, signal);
  return answer.json();
}

export async function getBytes(path, parameters, signal) {
  const answer = await get(path, parameters, signal);
  return answer.arrayBuffer();
}

async function get(path, parameters, signal) {
  let answer;
  try {
    answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The command multiseg view has ended, or cannot be reached. Start it again.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text;
  try {
    message = JSON.parse(text).message;
  } catch {
    // a plain sentence
  }
  throw new Error(message);
}
