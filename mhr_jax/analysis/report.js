
'use strict';
(() => {
  /* Theme: that of the system until the button says otherwise. */
  const root = document.documentElement;
  const themes = ['auto', 'light', 'dark'];
  const button = document.getElementById('theme');

  function show(theme) {
    if (theme === 'auto') delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
  }

  button.addEventListener('click', () => {
    const now = themes.indexOf(root.dataset.theme ?? 'auto');
    show(themes[(now + 1) % themes.length]);
  });
  button.hidden = false;
  show('auto');

  /* Sorting: a column's name sorts by it, once more turns it round, a third
     time brings the first order back. Numbers start with the greatest. */
  function numberOf(text) {
    const plain = text.trim().replaceAll(',', '').replace('\u2212', '-');
    return /^[-+]?\d/.test(plain) ? parseFloat(plain) : NaN;
  }

  function keysOf(rows, column) {
    const texts = rows.map((row) => {
      const first = row.cells[column].firstChild;
      return first === null ? '' : first.textContent.trim();
    });
    const given = texts.map((text) => text !== '' && text !== '\u2013');
    const numbers = texts.map(numberOf);
    const numeric =
      given.includes(true) && numbers.every((n, i) => !given[i] || !isNaN(n));
    return { given, numeric, values: numeric ? numbers : texts };
  }

  function sorted(rows, column, direction) {
    const { given, values, numeric } = keysOf(rows, column);
    const compare = (a, b) =>
      numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return rows
      .map((row, i) => i)
      .sort((i, j) => {
        if (!given[i] || !given[j]) return given[j] - given[i];
        return direction * compare(values[i], values[j]);
      })
      .map((i) => rows[i]);
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    if (rows.length < 2) return;
    heads.forEach((head, column) => {
      const control = document.createElement('button');
      control.type = 'button';
      control.append(...head.childNodes);
      head.append(control);
      control.addEventListener('click', () => {
        const first = keysOf(rows, column).numeric ? 'descending' : 'ascending';
        const other = first === 'ascending' ? 'descending' : 'ascending';
        const was = head.getAttribute('aria-sort');
        const now = { [first]: other, [other]: null }[was ?? ''];
        const order = now === undefined ? first : now;
        heads.forEach((one) => one.removeAttribute('aria-sort'));
        if (order !== null) head.setAttribute('aria-sort', order);
        const direction = order === 'ascending' ? 1 : -1;
        body.append(
          ...(order === null ? rows : sorted(rows, column, direction)),
        );
      });
    });
  }

  document.querySelectorAll('table').forEach(makeSortable);
})();
