"use strict";
// Tables: a click on a column's head sorts by it, numbers from the highest, the next click turns the order round;
// absent numbers stay last.
for (const table of document.querySelectorAll("table.sort")) {
  const heads = table.tHead.rows[0].cells;
  for (const [column, head] of [...heads].entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const sorted = head.getAttribute("aria-sort");
      const numeric = table.tBodies[0].rows[0]?.cells[column].dataset.value !== undefined;
      const down = sorted === null ? numeric : sorted === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number.parseFloat(cell.dataset.value);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return down ? -order : order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  }
}
// The search field above a long table keeps the rows whose head holds what is typed.
for (const field of document.querySelectorAll("input[data-table]")) {
  const rows = document.getElementById(field.dataset.table).tBodies[0].rows;
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
