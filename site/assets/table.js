// Filters and sorting of the table of models. Sorting itself is the library's, which reads data-sort and aria-sort.
"use strict";
(() => {
  const table = document.getElementById("table");
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const fields = Object.fromEntries(["search", "family", "data", "weights"].map((id) => [id, document.getElementById(id)]));
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const sort = document.getElementById("sort");
  const value = (field) => (field.type === "checkbox" ? (field.checked ? "1" : "") : field.value.trim());

  function filter() {
    const words = value(fields.search).toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits =
        words.every((word) => row.dataset.search.includes(word)) &&
        ["family", "data", "weights"].every((id) => !value(fields[id]) || row.dataset[id] === value(fields[id]));
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === rows.length ? `${shown} models` : `${shown} of ${rows.length} models`;
    nothing.hidden = shown > 0;
    table.hidden = shown === 0;
  }

  // The filters stand in the address, so that a view can be linked to.
  function write() {
    const chosen = Object.entries(fields).filter(([, field]) => value(field));
    const hash = new URLSearchParams(chosen.map(([id, field]) => [id, value(field)])).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    filter();
  }

  function read() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) return;
    const given = new URLSearchParams(hash);
    for (const [id, field] of Object.entries(fields)) {
      if (field.type === "checkbox") field.checked = given.get(id) === "1";
      else field.value = given.get(id) ?? "";
      // An address may name a choice that there is no more.
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
    filter();
    if (hash) document.getElementById("models").scrollIntoView();
  }

  for (const field of Object.values(fields)) field.addEventListener("input", write);
  document.getElementById("reset").addEventListener("click", () => {
    for (const field of Object.values(fields)) {
      if (field.type === "checkbox") field.checked = false;
      else field.value = "";
    }
    write();
    fields.search.focus();
  });
  addEventListener("hashchange", read);

  // Words begin with A, numbers with the largest. The library asks for one rule for the whole table, so it is set for
  // each column before the click reaches it.
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    table.classList.toggle("asc", head.dataset.first === "ascending");
  });
  table.addEventListener("sort-end", () => {
    const head = table.querySelector("thead th[aria-sort]");
    sort.value = `${heads.indexOf(head)} ${head.getAttribute("aria-sort")}`;
  });

  // On a phone the head is not shown; a list takes its place.
  for (const [index, head] of heads.entries()) {
    if (head.classList.contains("no-sort")) continue;
    const isText = head.dataset.first === "ascending";
    for (const direction of isText ? ["ascending", "descending"] : ["descending", "ascending"]) {
      const order = isText ? { ascending: "A–Z", descending: "Z–A" } : { ascending: "low first", descending: "high first" };
      sort.add(new Option(`${head.textContent.trim()}, ${order[direction]}`, `${index} ${direction}`));
    }
  }
  sort.addEventListener("change", () => {
    const [index, direction] = sort.value.split(" ");
    const head = heads[Number(index)];
    // The library turns a column around, so the other direction is what it must find.
    head.setAttribute("aria-sort", direction === "ascending" ? "descending" : "ascending");
    head.querySelector("button").click();
  });

  document.getElementById("filters").hidden = false;
  read();
  filter();
})();
