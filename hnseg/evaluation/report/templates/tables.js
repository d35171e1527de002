"use strict";

// Sorting by a click on a heading. Numbers sort by data-order, missing ones last either way.
function compare(column, numeric, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    return numeric ? cell.dataset.order : cell.textContent.trim();
  };
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
}

for (const heading of document.querySelectorAll("thead th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0];
    const order = compare(heading.cellIndex, heading.classList.contains("number"), ascending ? 1 : -1);
    body.append(...[...body.rows].sort(order));
  });
}

for (const input of document.querySelectorAll("input[data-table]")) {
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  const count = document.getElementById(`${input.dataset.table}-count`);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
}

// A link to a case opens it.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.matches("details")) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
for (const link of document.querySelectorAll('td a[href^="#case-"], th a[href^="#case-"]')) {
  link.addEventListener("click", () => setTimeout(openTarget)); // the same hash again is no change
}
openTarget();

document.getElementById("open-all").addEventListener("click", () => {
  for (const details of document.querySelectorAll("details.case")) details.open = true;
});
