"""What a side of a comparison can do, once it is built."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

Run = Callable[[], Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Works:
  """The works of one process, and what is to be known of them.

  Attributes:
    runs: by name; each does its work once and returns when it is done, perhaps
      with numbers of its own, such as the seconds of its parts.
    facts: anything JSON holds, such as a loss to compare with other sides.
  """

  runs: Mapping[str, Run]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
