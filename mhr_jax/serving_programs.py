"""The programs that serve a model, lowered to StableHLO by `jax.export`.

Weights are arguments of every program and constants in none: a program has
50 to 150 kilobytes whatever the model's width and depth. Batch and lengths are
symbols: one program serves every shape.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import inspect
from typing import Any

from flax import traverse_util
import jax
from jax import export
from jaxtyping import Array, Bool, Float, Int, PyTree

from mhr_jax import task_choice
from mhr_jax.errors import UserError
from mhr_jax.model import Params, RoutedT5
from mhr_jax.t5 import stacks
from mhr_jax.tree_paths import leaves_by_path

PLATFORMS = ('cpu', 'cuda', 'tpu')

_KNOWN_PLATFORMS = (*PLATFORMS, 'rocm')
_RESULTS = {
  'encode': ('memory', 'cache'),
  'decode_step': ('logits', 'cache'),
  'score': ('log_probability',),
}


def build_programs(
  model: RoutedT5, params: Params, platforms: Iterable[str] = PLATFORMS
) -> dict[str, export.Exported]:
  """Lowers a model to its programs.

  Every program's first argument is a dict of all weights by path. Then

  * encode: input_ids, attention_mask [batch, inputs], room [batch, new_tokens],
    of which only the shape counts, and task_ids [batch] where tasks differ;
    returns (memory, cache), with room for new_tokens in the cache.
  * decode_step: memory, cache, tokens [batch], position []; returns the
    float32 logits of the next token [batch, vocab] and the cache.
  * score: input_ids, attention_mask, decoder_input_ids, targets,
    target_weights [batch, length], and task_ids as above; returns the weighted
    log-probability of every row's targets [batch].

  Args:
    model: with `scan_layers`: one body a stack, however deep.
    params: its parameters, or their shapes.
    platforms: what the programs run on.

  Raises:
    UserError: there is no such platform.
  """
  platforms = _check_platforms(platforms)
  programs = _Programs(
    dataclasses.replace(
      model,
      config=dataclasses.replace(model.config, remat='none'),
      mix_in='front',
    )
  )
  arguments = _abstract_arguments(programs, params)
  with _no_source_paths():
    return {
      name: export.export(
        jax.jit(getattr(programs, name), keep_unused=True),
        platforms=platforms,
      )(*given.values())
      for name, given in arguments.items()
    }


def describe_program(
  name: str, program: export.Exported
) -> dict[str, list[dict[str, Any]]]:
  """Returns every array that a program takes and returns, in its order.

  Args:
    name: of the program, a key of what `build_programs` returned.
    program: the program.

  Returns:
    `arguments` and `results`, each a list of {'name', 'dtype', 'shape'}; a
    name is a path, such as 'cache/keys', and a size a number or a symbol.
  """
  given, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
  made = jax.tree.unflatten(program.out_tree, program.out_avals)
  made = made if isinstance(made, tuple) else (made,)
  _, *names = inspect.signature(getattr(_Programs, name)).parameters
  return {
    'arguments': _describe(names, given),
    'results': _describe(_RESULTS[name], made),
  }


def _describe(
  names: Iterable[str], trees: tuple[PyTree, ...]
) -> list[dict[str, Any]]:
  return [
    {
      'name': path,
      'dtype': str(leaf.dtype),
      'shape': [n if isinstance(n, int) else str(n) for n in leaf.shape],
    }
    for name, tree in zip(names, trees, strict=False)
    for path, leaf in leaves_by_path({name: tree}).items()
  ]


@dataclasses.dataclass(frozen=True)
class _Programs:
  """The programs as Python functions; `build_programs` documents them."""

  model: RoutedT5

  def encode(
    self,
    weights: Mapping[str, Array],
    input_ids: Int[Array, 'batch inputs'],
    attention_mask: Bool[Array, 'batch inputs'],
    room: Int[Array, 'batch new_tokens'],
    task_ids: Int[Array, 'batch'] | None = None,
  ) -> tuple[PyTree, PyTree]:
    params = _nested(weights)
    adapters = self.model.mix(params, task_ids) or {}
    encoded = self._apply(
      params, 'encode', input_ids, adapters, mask=attention_mask
    )
    cache = self._apply(
      params,
      'start_cache',
      encoded,
      adapters,
      rows=input_ids.shape[0],
      length=room.shape[1],
    )
    memory = {
      'attention_mask': attention_mask,
      'adapters': adapters.get('decoder', {}),
      **_as_dict(cache.cross_attention),
    }
    return memory, _as_dict(cache.self_attention)

  def decode_step(
    self,
    weights: Mapping[str, Array],
    memory: PyTree,
    cache: PyTree,
    tokens: Int[Array, 'batch'],
    position: Int[Array, ''],
  ) -> tuple[Float[Array, 'batch vocab'], PyTree]:
    logits, new = self._apply(
      _nested(weights),
      'decode_step',
      tokens,
      position,
      stacks.Cache(
        self_attention=(cache['keys'], cache['values']),
        cross_attention=(memory['keys'], memory['values']),
      ),
      memory['attention_mask'],
      {'decoder': memory['adapters']},
    )
    return logits, _as_dict(new.self_attention)

  def score(
    self,
    weights: Mapping[str, Array],
    input_ids: Int[Array, 'batch inputs'],
    attention_mask: Bool[Array, 'batch inputs'],
    decoder_input_ids: Int[Array, 'batch length'],
    targets: Int[Array, 'batch length'],
    target_weights: Float[Array, 'batch length'],
    task_ids: Int[Array, 'batch'] | None = None,
  ) -> Float[Array, 'batch']:
    batch = {
      'encoder_input_tokens': input_ids,
      'encoder_mask': attention_mask,
      'decoder_input_tokens': decoder_input_ids,
      'decoder_target_tokens': targets,
      'decoder_loss_weights': target_weights,
    }
    if task_ids is not None:
      batch['task_ids'] = task_ids
    return self.model.score(_nested(weights), batch)

  def _apply(self, params: Params, method: str, *args: Any, **settings: Any):
    variables = {'params': params['backbone']}
    result: Any = self.model.network.apply(
      variables, *args, method=method, **settings
    )
    return result


def _nested(weights: Mapping[str, Array]) -> Params:
  return traverse_util.unflatten_dict(weights, sep='/')


def _as_dict(keys_values: tuple[Array, Array]) -> dict[str, Array]:
  return dict(zip(('keys', 'values'), keys_values, strict=True))


def _abstract_arguments(
  programs: _Programs, params: Params
) -> dict[str, dict[str, PyTree]]:
  """Returns the shapes of each program's arguments, by program and name."""
  batch, inputs, length, new_tokens = export.symbolic_shape(
    'batch, inputs, length, new_tokens'
  )

  def array(*shape: Any, dtype: str = 'int32') -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  weights = {
    name: array(*leaf.shape, dtype=leaf.dtype)
    for name, leaf in leaves_by_path(params).items()
  }
  ids = {
    'input_ids': array(batch, inputs),
    'attention_mask': array(batch, inputs, dtype='bool'),
  }
  routed = task_choice.routes(programs.model)
  tasks = {'task_ids': array(batch)} if routed else {}
  encode = {
    'weights': weights,
    **ids,
    'room': array(batch, new_tokens),
    **tasks,
  }
  memory, cache = jax.eval_shape(programs.encode, *encode.values())
  return {
    'encode': encode,
    'decode_step': {
      'weights': weights,
      'memory': memory,
      'cache': cache,
      'tokens': array(batch),
      'position': array(),
    },
    'score': {
      'weights': weights,
      **ids,
      'decoder_input_ids': array(batch, length),
      'targets': array(batch, length),
      'target_weights': array(batch, length, dtype='float32'),
      **tasks,
    },
  }


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
  """Lowers without the paths of source files: the same bytes everywhere."""
  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _check_platforms(platforms: Iterable[str]) -> tuple[str, ...]:
  platforms = tuple(platforms)
  for platform in platforms:
    if platform not in _KNOWN_PLATFORMS:
      raise UserError(
        f'There is no platform {platform!r}. There are:'
        f' {", ".join(_KNOWN_PLATFORMS)}.'
      )
  if not platforms:
    raise UserError(f'Name at least one platform, such as {PLATFORMS[0]!r}.')
  return platforms
