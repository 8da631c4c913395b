"""Embeddings of tasks: what they must not depend on, and what they are."""

import collections

import jax
import numpy as np
import pytest

from mhr_jax import task_embeddings
from mhr_jax.errors import UserError
from mhr_jax.t5 import network
import toy_text


@pytest.fixture(scope='module')
def backbone():
  model = toy_text.make_model()
  params = toy_text.make_params(model)['backbone']
  return params, task_embeddings.BackboneEmbedder(toy_text.CONFIG, params)


def _rows(n=40, width=9, seed=0):
  """Returns inputs of different lengths, padded, and views without padding."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, width + 1, n)
  tokens = rng.integers(1, 250, (n, width)).astype(np.int32)
  tokens[np.arange(width) >= lengths[:, None]] = 0
  return tokens, [row[:size] for row, size in zip(tokens, lengths, strict=True)]


def test_backbone_embeddings_are_the_mean_of_encoder_states(backbone):
  """Without padding and without a mask, of two different lengths."""
  params, embedder = backbone
  tokens, _ = _rows(n=4)
  tokens[:2, 3:], tokens[:2, :3] = 0, 7 + tokens[:2, :3]
  tokens[2:] += 9
  encode = jax.jit(
    lambda rows: network.T5(toy_text.CONFIG).apply(
      {'params': params}, rows, method='encode'
    )
  )
  means = [encode(rows).mean(axis=1) for rows in (tokens[:2, :3], tokens[2:])]
  np.testing.assert_allclose(
    embedder.embed('any', tokens),
    np.concatenate(means).mean(axis=0),
    rtol=1e-5,
    atol=1e-6,
  )


def test_padding_and_batches_do_not_matter(backbone):
  tokens, _ = _rows()
  wide = np.pad(tokens, ((0, 0), (0, 60)))
  text = task_embeddings.TextEmbedder.fit([tokens])
  for embedder, exact in ((backbone[1], False), (text, True)):
    whole = embedder.embed('any', tokens)
    parts = [embedder.embed('any', tokens[i : i + 20]) for i in (0, 20)]
    tolerance = {'rtol': 0 if exact else 1e-5, 'atol': 1e-6}
    np.testing.assert_allclose(embedder.embed('any', wide), whole, **tolerance)
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, **tolerance)


def test_a_mean_over_no_token_is_zero():
  states = np.ones((2, 3, 4), np.float32)
  mask = np.array([[True, False, True], [False] * 3])
  found = task_embeddings.mean_over_tokens(states, mask)
  np.testing.assert_array_equal(found, [[1.0] * 4, [0.0] * 4])


def _by_hand(rows, documents):
  """TF-IDF with a dictionary of tokens and pairs, nothing hashed."""

  def features(row):
    row = row.tolist()
    return row + list(zip(row, row[1:], strict=False))

  frequency = collections.Counter()
  for row in documents:
    frequency.update(set(features(row)))
  total = collections.Counter()
  for row in rows:
    vector = {
      word: count * (np.log((1 + len(documents)) / (1 + frequency[word])) + 1)
      for word, count in collections.Counter(features(row)).items()
    }
    norm = np.linalg.norm(list(vector.values()))
    total.update({word: value / norm for word, value in vector.items()})
  return total


def test_text_likeness_is_that_of_tf_idf():
  """But for what falls into one bucket, with either sign."""
  tasks = [_rows(n=12, seed=seed) for seed in (0, 1)]
  for tokens, rows in tasks:  # Every second token is one that all have.
    tokens[:, ::2] = np.where(tokens[:, ::2] > 0, 5, 0)
    assert rows[0][0] == 5
  tasks.append((tasks[0][0][:6], tasks[0][1][:6]))
  embedder = task_embeddings.TextEmbedder.fit([tasks[0][0], tasks[1][0]])
  documents = tasks[0][1] + tasks[1][1]
  vectors = [embedder.embed('any', tokens) for tokens, _ in tasks]
  words = [_by_hand(rows, documents) for _, rows in tasks]
  for i, j in ((0, 1), (0, 2), (1, 2)):
    dot = sum(value * words[j][word] for word, value in words[i].items())
    norms = [np.linalg.norm(list(words[k].values())) for k in (i, j)]
    expected = dot / np.prod(norms)
    (found,) = task_embeddings.cosine_similarities(vectors[i], vectors[j][None])
    assert found == pytest.approx(expected, abs=0.05)


def test_cosines_are_those_of_a_loop_and_0_for_0():
  rng = np.random.default_rng(0)
  vector, others = rng.normal(size=7), rng.normal(size=(4, 7))
  others[2] = 0
  expected = [
    sum(a * b for a, b in zip(vector, other, strict=True))
    / max(sum(vector**2) ** 0.5 * sum(other**2) ** 0.5, 1e-30)
    for other in others
  ]
  found = task_embeddings.cosine_similarities(vector, others)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert found[2] == 0


def test_a_file_gives_its_vectors_and_names_what_it_lacks(tmp_path):
  path = tmp_path / 'vectors.npz'
  np.savez(path, **{'copy': [1.0, 2.0], 'a/upper': [3.0, 4.0]})
  embedder = task_embeddings.FileEmbedder(path)
  none = np.zeros((0, 1), np.int32)
  assert embedder.embed('a/upper', none).tolist() == [3.0, 4.0]
  with pytest.raises(UserError, match="'uper'. Did you mean 'a/upper'"):
    embedder.embed('uper', none)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'a': [1.0], 'b': [1.0, 2.0]}, r"'b' has the shape \(2,\)"),
    ({'a': [[1.0]]}, r"'a' has the shape \(1, 1\)"),
    ({}, 'is empty'),
    (None, 'There is no file'),
    (b'no zip', 'is no .npz of vectors by task'),
  ],
)
def test_a_file_of_something_else_is_an_error(tmp_path, arrays, message):
  path = tmp_path / 'vectors.npz'
  if isinstance(arrays, bytes):
    path.write_bytes(arrays)
  elif arrays is not None:
    np.savez(path, **arrays)
  with pytest.raises(UserError, match=message):
    task_embeddings.FileEmbedder(path)


def test_saved_embeddings_are_read_only_if_made_from_the_same(tmp_path):
  path = tmp_path / 'task_embeddings.npz'
  inputs = {'one': _rows(seed=1)[0], 'two': _rows(seed=2)[0]}
  embedder = task_embeddings.TextEmbedder.fit(inputs.values())
  known = task_embeddings.embed_tasks(embedder, inputs)
  assert task_embeddings.load_embeddings(path, None, made_from='x') is None
  task_embeddings.save_embeddings(path, known, made_from='x')
  assert task_embeddings.load_embeddings(path, None, made_from='y') is None
  found = task_embeddings.load_embeddings(path, None, made_from='x')
  assert found.tasks == ('one', 'two')
  np.testing.assert_array_equal(found.vectors, known.vectors)
  np.testing.assert_array_equal(
    found.embedder.embed('new', inputs['one']),
    embedder.embed('new', inputs['one']),
  )


def test_one_program_serves_all_tasks(backbone):
  embedder = backbone[1]
  embedder.embed('any', _rows(n=40)[0])
  before = embedder._encode._cache_size()
  embedder.embed('other', _rows(n=7, seed=3)[0])
  assert embedder._encode._cache_size() == before
