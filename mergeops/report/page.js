"use strict";
const body = document.querySelector("tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll("thead th")];

function compared(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

function sort(column, direction) {
  const value = (row) => row.cells[column].dataset.value;
  rows.sort((p, q) => {
    const [a, b] = [value(p), value(q)];
    // What has no value stands last either way.
    if (a === "" || b === "") return (a === "") - (b === "");
    return direction * compared(a, b);
  });
  body.append(...rows);
  heads.forEach((head, i) => {
    if (i === column) head.ariaSort = direction === 1 ? "ascending" : "descending";
    else head.removeAttribute("aria-sort");
  });
}

heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const first = head.dataset.first === "descending" ? -1 : 1;
    const now = head.ariaSort === "ascending" ? 1 : head.ariaSort === "descending" ? -1 : 0;
    sort(column, now === 0 ? first : -now);
  });
});

const filters = document.querySelector(".filters");
function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/);
  const kinds = new Set([...filters.querySelectorAll("[name=kind]:checked")].map((k) => k.value));
  const experiment = document.getElementById("experiment")?.value ?? "";
  const onlyBeyond = document.getElementById("beyond").checked;
  let shown = 0;
  for (const row of rows) {
    const { kind, name, beyond } = row.dataset;
    row.hidden = !(
      kinds.has(kind) &&
      words.every((word) => name.toLowerCase().includes(word)) &&
      (experiment === "" || row.dataset.experiment === experiment) &&
      (!onlyBeyond || beyond === "yes")
    );
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} models`;
}
filters.addEventListener("input", filter);
filter();
