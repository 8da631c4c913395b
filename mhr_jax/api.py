"""A model to use: token ids or texts in; logits, texts and scores out.

    import mhr_jax

    model = mhr_jax.load('runs/mhr')
    model.generate(['a text', 'another one'], task='copy')

What comes in and goes out is NumPy and plain Python. A task is a name or an id
wherever one is asked for; 'average' is the average adapter (the paper's mu),
unless a task is called so.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
import logging
from typing import Any, Literal

from etils import epath
import jax
from jaxtyping import Float32, Int32
import numpy as np

from mhr_jax import adapters, loading, partitioning, saving, task_choice
from mhr_jax import model_inputs as inputs
from mhr_jax.compiled_model import CompiledModel
from mhr_jax.errors import UserError, nearest
from mhr_jax.logits_checksum import (
  LogitsChecksum,
  logits_checksum,
  probe_tokens,
)
from mhr_jax.routing import Mixing
from mhr_jax.t5.config import Dtype, T5Config
from mhr_jax.t5.decoding import DecodingSettings
from mhr_jax.task_choice import TaskRows, Tasks
from mhr_jax.vocabulary import Vocabulary

_NORMALISATIONS = ('sum', 'average')
_log = logging.getLogger(__name__)


class Model:
  """A T5 with its adapters, its tasks and its vocabulary; `load` reads one.

  Attributes:
    loaded: the `RoutedT5`, its parameters, task table and vocabulary.
  """

  def __init__(self, loaded: loading.LoadedModel):
    self.loaded = loaded
    self._table = task_choice.known_tasks(loaded.model, loaded.task_table)
    self._compiled = CompiledModel(loaded.model, loaded.params)

  def __repr__(self) -> str:
    counts = ', '.join(
      f'{count:,} in {label}' for label, count in self.n_parameters.items()
    )
    return (
      f'Model({self.loaded.source!r}, {len(self.tasks)} tasks, parameters:'
      f' {counts})'
    )

  @property
  def tasks(self) -> tuple[str, ...]:
    """The tasks' names in the order of their ids.

    '0', '1', … where adapters came without names; () without adapters.
    """
    return () if self._table is None else self._table.names

  @property
  def n_parameters(self) -> dict[str, int]:
    """How many parameters `backbone`, `adapters` and `routers` have."""
    return loading.count_parameters(self.loaded.params)

  def logits(
    self,
    input_ids: Int32[np.ndarray, 'batch inputs'],
    decoder_input_ids: Int32[np.ndarray, 'batch length'],
    attention_mask: Any | None = None,
    task_ids: Tasks | None = None,
  ) -> Float32[np.ndarray, 'batch length vocab']:
    """Returns the logits of the next token at every target position.

    Args:
      input_ids: what the encoder reads.
      decoder_input_ids: what the decoder reads: the targets moved right by
        one, behind the start token.
      attention_mask: 1 where an input token is read, in the shape of
        `input_ids`; by default at every token but padding.
      task_ids: of each row, names or ids, or one for all; 'average' for the
        average adapter; not needed with one task or without routing.

    Raises:
      UserError: shapes or ids do not fit, or the tasks differ and none is
        chosen.
    """
    batch = self._batch(input_ids, attention_mask)
    rows = len(batch['encoder_input_tokens'])
    batch['decoder_input_tokens'] = inputs.check_tokens(
      'decoder_input_ids', decoder_input_ids, self._config, rows=rows
    )
    return self._compiled.logits(batch, self._choose(task_ids, rows))

  def generate_ids(
    self,
    input_ids: Int32[np.ndarray, 'batch inputs'],
    attention_mask: Any | None = None,
    task_ids: Tasks | None = None,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    *,
    seed: int = 0,
    **sampling: Any,
  ) -> Int32[np.ndarray, 'batch length']:
    """Writes a sequence for every row, in the form of transformers.

    Args:
      input_ids: what the encoder reads.
      attention_mask: see `logits`.
      task_ids: see `logits`.
      max_new_tokens: tokens to write at most, the end token included.
      num_beams: sequences that beam search keeps; 1 takes the best token.
      seed: of the random choices, where `temperature` is above 0.
      **sampling: further fields of `DecodingSettings`: temperature, top_k,
        top_p, length_penalty, length_exponent.

    Returns:
      The decoder's start token, the tokens, padding after the end token; as
      long as the longest row. A row that reads no token writes none.

    Raises:
      UserError: see `logits` and `DecodingSettings`.
    """
    settings = _settings(self.generate_ids, max_new_tokens, num_beams, sampling)
    batch = self._batch(input_ids, attention_mask)
    tasks = self._choose(task_ids, len(batch['encoder_input_tokens']))
    key = jax.random.key(seed)
    tokens = self._compiled.generate(batch, tasks, settings, key)
    lengths = _lengths(tokens, self._config.eos_id)
    lengths[~batch['encoder_mask'].any(axis=1)] = 0
    first = self._config.decoder_start_token_id
    start = np.full((len(tokens), 1), first, np.int32)
    return np.concatenate([start, tokens[:, : lengths.max(initial=0)]], axis=1)

  def generate(
    self,
    texts: str | Sequence[str],
    task: Tasks | None = None,
    *,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    input_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **sampling: Any,
  ) -> Any:
    """Writes a text for every text.

    Args:
      texts: the inputs.
      task: see `logits`; one for all texts or one a text.
      max_new_tokens: see `generate_ids`.
      num_beams: see `generate_ids`.
      input_length: tokens of a text, its end token included, beyond which it
        is cut; None cuts nothing.
      batch_size: texts in a batch.
      seed: see `generate_ids`.
      **sampling: see `generate_ids`.

    Returns:
      A list of texts; one text where `texts` is one.

    Raises:
      UserError: see `generate_ids`; or the model has no vocabulary.
    """
    settings = _settings(self.generate, max_new_tokens, num_beams, sampling)
    found = inputs.list_texts(texts)
    tasks = self._choose(task, len(found))
    rows = self._encode(found, input_length)
    vocabulary, key, written = self._vocabulary, jax.random.key(seed), []
    for piece, size in inputs.cut_in_batches(len(rows), batch_size):
      batch = self._batch(self._pad(rows[piece], size))
      tokens = self._compiled.generate(
        batch,
        task_choice.rows_of(tasks, piece, size),
        settings,
        jax.random.fold_in(key, piece.start),
      )
      tokens = tokens[: len(rows[piece])].tolist()
      written += [vocabulary.decode(row).strip() for row in tokens]
    return written[0] if isinstance(texts, str) else written

  def score(
    self,
    texts: str | Sequence[str],
    choices: Sequence[str] | Sequence[Sequence[str]],
    task: Tasks | None = None,
    *,
    normalisation: Literal['sum', 'average'] = 'sum',
    input_length: int | None = None,
    batch_size: int = 32,
  ) -> Any:
    """Returns how likely each choice is as a text's answer.

    Args:
      texts: the inputs.
      choices: one list for all texts, or one list a text.
      task: see `generate`.
      normalisation: 'sum' is the log-probability of the choice: the sum over
        its tokens and its end token. 'average' divides it by their number, so
        that long choices have no disadvantage.
      input_length: see `generate`.
      batch_size: pairs of a text and a choice in a batch.

    Returns:
      float32: [text, choice] with one list for all, [choice] for one text,
      and with one list a text a list of arrays [choice]. The best choice is
      the `argmax` of the last axis.

    Raises:
      UserError: see `generate`; or a text has no choices.
    """
    if normalisation not in _NORMALISATIONS:
      hint = nearest(normalisation, _NORMALISATIONS)
      raise UserError(f'There is no normalisation {normalisation!r}.{hint}')
    found = inputs.list_texts(texts)
    lists = inputs.list_choices(choices, len(found))
    counts = [len(each) for each in lists]
    tasks = self._choose(task, len(found))
    if isinstance(tasks, np.ndarray):
      tasks = np.repeat(tasks, counts)
    rows = self._encode(found, input_length)
    rows = [row for row, n in zip(rows, counts, strict=True) for _ in range(n)]
    targets = self._encode([choice for each in lists for choice in each])
    scores = self._score_rows(rows, targets, tasks, batch_size)
    if normalisation == 'average':
      scores = scores / np.array([len(target) for target in targets])
    scores = scores.astype(np.float32)
    if isinstance(texts, str):
      return scores
    if inputs.is_one_list(choices):
      return scores.reshape(len(found), len(choices))
    return np.split(scores, np.cumsum(counts)[:-1])

  def effective_lora(
    self, task: str | int | None = None
  ) -> dict[str, dict[str, Float32[np.ndarray, '...']]]:
    """Returns the one adapter that a task's mixture amounts to, exactly.

    A linear with kernel W then computes `x W + (x a) b`: the scale, alpha /
    rank, is in b. Where the adapters are (IA)³, it computes `(x W) · scale`.

    Args:
      task: a name, an id or 'average'; not needed with one task or without
        routing.

    Returns:
      By path of a linear, such as 'encoder/attention/query', `a` [layer, in,
      rank] and `b` [layer, rank, out], or of (IA)³ `scale` [layer, out].

    Raises:
      UserError: the model has no adapters, or see `logits`.
    """
    model, params = self.loaded.model, self.loaded.params
    if model.adapters is None:
      raise UserError(f'{self.loaded.source} has no adapters.')
    chosen = task_choice.choose_one_task(task, model, self._table)
    if isinstance(chosen, str):
      (model, params), chosen = self._compiled.averaged, 0
    assert model.adapters is not None
    found = adapters.task_adapter(params, chosen, model.adapters)
    return {
      path: {name: np.asarray(x, np.float32) for name, x in pair.items()}
      for path, pair in adapters.list_inventories(found).items()
    }

  def logits_checksum(self, task: str | int | None = None) -> LogitsChecksum:
    """Returns a few numbers that tell whether two models compute the same.

    Args:
      task: see `effective_lora`; by default, the first tasks in turn.
    """
    chosen: TaskRows = None
    if task is not None:
      chosen = self._choose(task, len(probe_tokens(self._config)[0]))
    return logits_checksum(self.loaded.model, self.loaded.params, chosen)

  def save(
    self,
    path: epath.PathLike,
    format: saving.SaveFormat = 'native',
    task: str | int | None = None,
    *,
    dtype: Dtype | None = None,
    base_model: str | None = None,
  ) -> saving.Saved:
    """Writes the model, or a part of it, in a format.

    Of all tasks, or of one where `task` says which:

    * 'native': the adapters alone; a bare backbone, with its vocabulary.
    * 't5x': a T5X checkpoint; of one task as 'hf', of all of them unfused.
    * 'stablehlo': programs that run with JAX, NumPy and flatbuffers alone.

    Of all tasks:

    * 'peft-poly': the adapters and routers, as PEFT's POLY.
    * 'run': a run folder, for our trainer to go on with.

    Of one task:

    * 'peft-lora': its one low-rank pair, as PEFT's LORA.
    * 'peft-ia3': its one (IA)³ scale, as PEFT's IA3.
    * 'hf': a folder of transformers, the adapter fused into it.

    Fusing takes its sums in float32. 'run' and unfused 't5x' hold the
    optimizer's state where the model was loaded `with_optimizer`; training
    resumes from it. Without, it can start from the parameters.

    Args:
      path: a new or empty folder; nothing is overwritten. A folder of T5X
        checkpoints takes one of a later step.
      format: see above.
      task: a name, an id or 'average'; where a format holds one task, not
        needed with one task or without routing.
      dtype: to store a backbone in ('native' without adapters, 'hf', 't5x');
        as it is by default.
      base_model: for PEFT's formats: what their `adapter_config.json` calls the
        backbone: a name on a hub or a path.

    Returns:
      What was written, and by how much fusing changed the logits.

    Raises:
      UserError: there is no such format, the folder is not free, the tasks
        differ and none is chosen, or the format has nothing like it or does
        not use a setting that is given.
    """
    return saving.save_model(
      self.loaded, path, format, task, dtype=dtype, base_model=base_model
    )

  @property
  def _config(self) -> T5Config:
    return self.loaded.model.config

  @property
  def _vocabulary(self) -> Vocabulary:
    if self.loaded.vocabulary is None:
      raise UserError(
        f'{self.loaded.source} has no vocabulary, so texts cannot be read. Say'
        " which one: mhr_jax.load(…, vocabulary='spiece.model'), or 'bytes'."
      )
    vocabulary, ids = self.loaded.vocabulary, self._config.vocab_size
    if vocabulary.vocab_size > ids or vocabulary.eos_id != self._config.eos_id:
      raise UserError(
        f'{vocabulary!r} does not fit: it has {vocabulary.vocab_size} ids, the'
        f' backbone {ids}; it ends texts with {vocabulary.eos_id}, the backbone'
        f' with {self._config.eos_id}.'
      )
    return vocabulary

  def _choose(self, tasks: Tasks | None, rows: int) -> TaskRows:
    return task_choice.choose_tasks(tasks, rows, self.loaded.model, self._table)

  def _encode(
    self, texts: Sequence[str], length: int | None = None
  ) -> list[list[int]]:
    return inputs.encode_texts(
      texts, self._vocabulary, eos_id=self._config.eos_id, length=length
    )

  def _pad(
    self, rows: Sequence[Sequence[int]], n_rows: int
  ) -> Int32[np.ndarray, 'batch length']:
    return inputs.pad_rows(rows, self._config.pad_id, n_rows=n_rows)

  def _batch(
    self, input_ids: Any, attention_mask: Any | None = None
  ) -> dict[str, np.ndarray]:
    tokens = inputs.check_tokens('input_ids', input_ids, self._config)
    mask = inputs.make_mask(attention_mask, tokens, self._config)
    return {'encoder_input_tokens': tokens, 'encoder_mask': mask}

  def _score_rows(
    self,
    rows: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    tasks: TaskRows,
    batch_size: int,
  ) -> Float32[np.ndarray, 'row']:
    """Returns the summed log-probability of each row's target."""
    scores = [np.zeros(0, np.float32)]
    for piece, size in inputs.cut_in_batches(len(rows), batch_size):
      batch = self._batch(self._pad(rows[piece], size))
      batch |= inputs.target_arrays(targets[piece], self._config, n_rows=size)
      found = self._compiled.score(
        batch, task_choice.rows_of(tasks, piece, size)
      )
      scores.append(found[: len(targets[piece])])
    return np.concatenate(scores)


def load(
  path: epath.PathLike,
  adapter: epath.PathLike | None = None,
  dtype: Dtype | None = None,
  *,
  vocabulary: Vocabulary | epath.PathLike | None = None,
  tasks: Sequence[str] | None = None,
  config: T5Config | None = None,
  step: int | None = None,
  mesh: partitioning.Mesh | None = None,
  allow_pickle: bool = False,
  with_optimizer: bool = False,
  alpha: float | None = None,
  mixing: Mixing | None = None,
  on_message: loading.OnMessage = _log.warning,
) -> Model:
  """Reads a model, whoever saved it; the format is told from the files.

  Args:
    path: a run folder; a checkpoint of a routed model that T5X trained; or a
      backbone: a folder of `backbones.save_backbone` or of transformers, or a
      T5X checkpoint. With `adapter`, own adapters are left out.
    adapter: a native adapter folder, a PEFT folder (POLY, LORA, IA3) or an mttl
      checkpoint, for this backbone.
    dtype: of the backbone's parameters and of what is computed; by default the
      folder says both (`T5Config.storage` and `dtype`), and what others saved
      becomes float32.
    vocabulary: an object, a SentencePiece model, a folder that has one, or
      'bytes'; needed for texts where there is none beside the backbone.
    tasks: the tasks' names in the order of their ids, where the adapter's file
      has none.
    config: the backbone expected; needed for T5X checkpoints of a T5 that is
      not of the published kind, since they hold arrays alone.
    step: of which checkpoint of a run with its own adapters; the last one by
      default.
    mesh: where to put the parameters, of devices of this process; one device
      by default.
    allow_pickle: whether a file may be unpickled (`pytorch_model.bin`, mttl's),
      which runs a restricted unpickler over it.
    with_optimizer: also read the optimizer's state, where a run or a routed
      checkpoint of T5X's has it, to go on training elsewhere (`Model.save`).
    alpha: of the adapters, where an mttl checkpoint does not say.
    mixing: how the skills are mixed, likewise.
    on_message: called with sentences about what files do not say and was
      assumed, and about a backbone that is not the one adapters come from; by
      default they are logged as warnings.

  Raises:
    UserError: there is nothing, or nothing that is read; an adapter is for
      another backbone, or alone; something is missing, extra or misshapen; or
      an argument does not go with what is read.
  """
  return Model(
    loading.read_model(
      path,
      adapter,
      dtype=dtype,
      vocabulary=vocabulary,
      tasks=tasks,
      config=config,
      step=step,
      mesh=mesh,
      allow_pickle=allow_pickle,
      with_optimizer=with_optimizer,
      alpha=alpha,
      mixing=mixing,
      on_message=on_message,
    )
  )


def _settings(
  method: Callable[..., Any],
  max_new_tokens: int,
  num_beams: int,
  sampling: Mapping[str, Any],
) -> DecodingSettings:
  """Returns how to decode; what `method` does not take is refused by name."""
  fields = [field.name for field in dataclasses.fields(DecodingSettings)]
  for name in sampling:
    if name not in fields:
      known = {*fields, *inspect.signature(method).parameters} - {'sampling'}
      raise UserError(
        f'{method.__name__} has no argument {name!r}.{nearest(name, known)}'
      )
  return DecodingSettings(max_new_tokens, num_beams, **sampling)


def _lengths(
  tokens: Int32[np.ndarray, 'batch length'], eos_id: int
) -> Int32[np.ndarray, 'batch']:
  """Returns how many tokens each row has, its end token included."""
  ended = tokens == eos_id
  first = ended.argmax(axis=1) + 1
  return np.where(ended.any(axis=1), first, tokens.shape[1]).astype(np.int32)
