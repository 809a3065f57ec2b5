// Theme and copy buttons, on every page.
"use strict";
(() => {
  const root = document.documentElement;
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const said = document.getElementById("said");

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preference.matches);

  function showTheme() {
    const other = isDark() ? "light" : "dark";
    button.textContent = other === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Switch to the ${other} theme`);
    document.dispatchEvent(new Event("theme"));
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // The choice then ends with the page.
    }
    showTheme();
  });
  preference.addEventListener("change", showTheme);
  showTheme();

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return;
    } catch {
      // Pages from a folder may not have the clipboard; a selection can still be copied.
    }
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "sr-only";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser does not allow copying");
  }

  document.addEventListener("click", async (event) => {
    const target = event.target.closest("button.copy");
    if (!target) return;
    const text = target.dataset.copy ?? document.getElementById(target.dataset.copyFrom).textContent;
    let word = "Copied";
    try {
      await copy(text);
    } catch {
      word = "Failed";
    }
    target.focus();
    target.textContent = word;
    said.textContent = word === "Copied" ? `Copied: ${text.slice(0, 80)}` : "The browser does not allow copying";
    setTimeout(() => {
      target.textContent = "Copy";
    }, 1500);
  });
})();
