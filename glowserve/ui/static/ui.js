// The pages work without this file. With it, results replace one another in place, sliders draw at once, pictures and
// folders can be dropped anywhere, and uploads that the page would refuse are not sent.
"use strict";

const form = document.querySelector("form");
const result = document.getElementById("result");
const status = document.getElementById("status");
let running = null;

// Results

async function show(focus) {
  running?.abort();
  const own = (running = new AbortController());
  status.textContent = "Asking the service ...";
  result.setAttribute("aria-busy", "true");
  try {
    const problem = tooMuch();
    result.replaceChildren(...(problem ? [failure(problem)] : await answer(own.signal)));
  } catch (error) {
    if (own.signal.aborted) return;
    result.replaceChildren(failure("The page gets no answer: is `glowserve ui` still running?"));
  }
  finish(focus);
}

async function answer(signal) {
  const data = new FormData(form);
  let response;
  if (form.method === "get") {
    const address = `${form.getAttribute("action")}?${new URLSearchParams(data)}`;
    response = await fetch(address, { signal });
    history.replaceState(null, "", address);
  } else {
    response = await fetch(form.getAttribute("action"), { method: "post", body: data, signal });
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  return page.getElementById("result").childNodes;
}

function failure(sentence) {
  const paragraph = document.createElement("p");
  paragraph.className = "error";
  paragraph.tabIndex = -1;
  paragraph.textContent = sentence;
  return paragraph;
}

function finish(focus) {
  result.removeAttribute("aria-busy");
  const first = result.querySelector("h2, .error");
  status.textContent = focus ? "" : (first?.textContent ?? ""); // the focus says it, too
  if (focus) first?.focus();
  showWalk();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(true);
});

// Sliders

let waiting = 0;
form.addEventListener("input", (event) => {
  if (event.target.type !== "range") return;
  event.target.parentElement.querySelector("output").value = event.target.value;
  if (form.method !== "get") return;
  clearTimeout(waiting);
  waiting = setTimeout(() => show(false), 150);
});

function showWalk() {
  const walk = result.querySelector(".walk");
  if (!walk) return;
  const [position, step] = [walk.querySelector("input"), walk.querySelector("img")];
  const images = result.querySelectorAll(".strip img");
  const move = () => {
    const chosen = images[position.value - 1];
    [step.src, step.alt] = [chosen.src, chosen.alt];
    position.setAttribute("aria-valuetext", chosen.alt);
  };
  position.addEventListener("input", move);
  move();
  walk.hidden = false;
}

// Models

const model = document.getElementById("model");

// Of several models, the fields of the chosen one alone are shown and sent.
function showFields() {
  for (const each of form.querySelectorAll("[data-model]")) {
    each.hidden = each.disabled = each.dataset.model !== model.value;
  }
}

if (model) {
  model.addEventListener("change", showFields);
  showFields();
}

// Pictures

function tooMuch() {
  const files = [...form.querySelectorAll("input[type=file]")].flatMap((input) => [...input.files]);
  if (files.length > form.dataset.mostPictures) return form.dataset.tooMany;
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  return bytes > form.dataset.mostBytes ? form.dataset.tooLarge : "";
}

function put(input, files) {
  const chosen = new DataTransfer();
  files.forEach((file) => chosen.items.add(file));
  input.files = chosen.files;
}

const isPicture = (file) => file.type.startsWith("image/");

document.getElementById("folder")?.addEventListener("change", (event) => {
  put(event.target, [...event.target.files].filter(isPicture));
});

// The files of dropped files and folders: one more than permitted at most, so that too many are seen as such.
async function dropped(items, most) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const files = [];
  while (entries.length && files.length <= most) {
    const entry = entries.shift();
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (isPicture(file)) files.push(file);
    } else {
      const reader = entry.createReader();
      for (let some; entries.length <= 20 * most && (some = await listed(reader)).length; ) entries.push(...some);
    }
  }
  return files;
}

const listed = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));

const pictures = document.getElementById("pictures");
if (pictures) {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const most = Number(form.dataset.mostPictures);
    put(pictures, await dropped(event.dataTransfer.items, most).catch(() => []));
    put(document.getElementById("folder"), []);
    show(true);
  });
}

showWalk();
