"use strict";

// Sorting by a click on a heading: numbers by value, intervals by their score; missing ones last either way.
const number = /^-?\d+(\.\d+)?( \[|$)/;

function compare(column, sign) {
  const key = (row) => row.cells[column].textContent.trim().replace("−", "-").replace(/^–$/, "");
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const numbers = number.test(x) && number.test(y);
    return sign * (numbers ? parseFloat(x) - parseFloat(y) : x.localeCompare(y, undefined, { numeric: true }));
  };
}

for (const section of document.querySelectorAll("section:has(table)")) {
  const body = section.querySelector("tbody");
  const rows = [...body.rows];
  for (const heading of section.querySelectorAll("thead th")) {
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      body.append(...rows.sort(compare(heading.cellIndex, ascending ? 1 : -1)));
    });
  }
  const input = section.querySelector("input");
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    section.querySelector("[role=status]").textContent = `${shown} of ${rows.length} rows`;
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
