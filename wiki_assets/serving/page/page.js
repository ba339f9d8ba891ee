// The page works without this. With it, answers come as you type, and the keyboard is enough.
"use strict";

const form = document.getElementById("form");
const question = document.getElementById("q");
const results = document.getElementById("results");
const top_ = document.querySelector(".top");
const TYPING_MS = 180;
let timer = 0;
let running = null;
let shown = address();

function address() {
  const given = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value.trim() && !(name === "mode" && value === "hybrid")) given.set(name, value.trim());
  }
  return given.has("q") ? "?" + given : "";
}

async function ask({ push = false } = {}) {
  clearTimeout(timer);
  const wanted = address();
  if (wanted === shown) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  results.setAttribute("aria-busy", "true");
  try {
    if (wanted) {
      const answer = await fetch("/results" + wanted, { signal });
      const seconds = Number(answer.headers.get("retry-after"));
      if (answer.type === "opaque" || !(answer.headers.get("content-type") || "").startsWith("text/html")) {
        const problem = await answer.json().catch(() => ({ title: "No answer", detail: "" }));
        show(problem.title, problem.detail);
      } else {
        results.innerHTML = await answer.text(); // escaped by the service, and no script may run in it
      }
      if (seconds) timer = setTimeout(() => { shown = null; ask(); }, seconds * 1000);
    } else {
      results.replaceChildren();
    }
    shown = wanted;
    top_.dataset.empty = wanted ? "no" : "yes";
    document.title = (wanted ? question.value.trim().slice(0, 60) + " – " : "") + "Ask Wikipedia";
    history[push ? "pushState" : "replaceState"](null, "", "/" + wanted);
  } catch (error) {
    if (error.name === "AbortError") return;
    top_.dataset.empty = "no";
    show("No connection", "The service does not answer. Press Enter to try again.");
    shown = null;
  }
  if (!signal.aborted) results.removeAttribute("aria-busy");
}

function show(title, detail) {
  const box = document.createElement("div");
  box.className = "problem";
  box.setAttribute("role", "alert");
  const text = document.createElement("p");
  const name = document.createElement("strong");
  name.textContent = title + ". ";
  text.append(name, detail);
  box.append(text);
  results.replaceChildren(box);
}

function titles() {
  return [...results.querySelectorAll("h3 a")];
}

function move(step) {
  const links = titles();
  const at = links.indexOf(document.activeElement?.closest("li")?.querySelector("h3 a"));
  const to = at + step;
  if (to < 0) question.focus();
  else links[Math.min(to, links.length - 1)]?.focus();
}

question.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, TYPING_MS);
});
form.addEventListener("change", (event) => { if (event.target !== question) ask(); });
form.addEventListener("submit", (event) => { event.preventDefault(); ask({ push: true }); });
addEventListener("popstate", () => location.reload());
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) { question.focus(); question.select(); }
  else if (event.key === "Escape" && event.target !== question) { question.focus(); question.select(); }
  else if (event.key === "Escape" && question.value) { question.value = ""; ask(); }
  else if (event.key === "ArrowDown" && (!typing || event.target === question)) move(1);
  else if (event.key === "ArrowUp" && !typing) move(-1);
  else return;
  event.preventDefault();
});
