"""The table of mistakes that a person may make; see `case.Case`."""

from bad_input_cases import commands, models, settings, tasks

TABLE = (*commands.CASES, *settings.CASES, *tasks.CASES, *models.CASES)
