"use strict";

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// A library that the page carries packed: browsers refuse to import a file, but not what was unpacked here.
async function unpack(id) {
  const packed = new Blob([bytes(document.getElementById(id).textContent)]).stream();
  const source = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).blob();
  return import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
}

const MANY = 8; // rows that take a filter

async function tables() {
  const { default: DataTable } = await unpack("datatables");
  for (const table of document.querySelectorAll("table.data")) {
    const rows = table.tBodies[0].rows.length;
    new DataTable(table, {
      autoWidth: false,
      info: false,
      order: [],
      orderMulti: false,
      paging: false,
      searching: rows > MANY,
      titleRow: table.tHead.rows.length - 1,
      layout: {
        top: rows > MANY ? { search: { text: "Filter", placeholder: "case, centre, reason" } } : null,
        topStart: null,
        topEnd: null,
        bottomStart: null,
        bottomEnd: null,
      },
    });
  }
  document.body.dataset.ready = "true";
}

// A table that fits lies on the page, with its headings at the window's edge; another scrolls in its own box.
function fit() {
  for (const box of document.querySelectorAll(".wide")) {
    box.classList.toggle("fits", box.querySelector("table").offsetWidth <= box.clientWidth);
  }
}
addEventListener("resize", fit);
tables().then(fit);

// A link to a case opens it.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.matches("details")) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {
  if (event.target.closest('a[href^="#case-"]')) setTimeout(openTarget); // the same hash again is no change
});
openTarget();

document.getElementById("open-all").addEventListener("click", () => {
  for (const details of document.querySelectorAll("details.case")) details.open = true;
});
