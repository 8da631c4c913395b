"""Tables of texts for a terminal (rich) and for documents (Markdown)."""

from rich import table as rich_table

from mhr_jax.analysis.report_tables import Table


def to_rich(table: Table, *, left: int = 1) -> rich_table.Table:
  """Returns a table that a rich console prints.

  Args:
    table: of texts.
    left: how many columns are texts, aligned to the left; the others are
      numbers.
  """
  shown = rich_table.Table(
    title=table.title,
    caption=table.note or None,
    title_justify='left',
    caption_justify='left',
  )
  for i, name in enumerate(table.header):
    shown.add_column(name, justify='left' if i < left else 'right')
  for row in table.rows:
    shown.add_row(*row)
  return shown


def to_markdown(table: Table, *, left: int = 1) -> str:
  """Returns a section with a table in GitHub's form; see `to_rich`."""
  marks = ['---' if i < left else '---:' for i in range(len(table.header))]
  rows = [table.header, marks, *table.rows]
  lines = ['| ' + ' | '.join(map(_escape, row)) + ' |' for row in rows]
  note = f'\n{table.note}\n' if table.note else ''
  return f'## {table.title}\n\n' + '\n'.join(lines) + f'\n{note}'


def _escape(text: str) -> str:
  return text.replace('|', '\\|').replace('\n', '<br>')
