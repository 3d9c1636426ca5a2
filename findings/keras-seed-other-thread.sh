#!/usr/bin/env bash
# Guess: after keras.utils.set_random_seed(1) the first weights of a network are
#   the same, whatever other threads of the process do: the seed is Keras's own.
# What is so: initialisers without a seed of their own draw one from Python's
#   process-wide `random` when they are made. One draw by another thread between
#   the seeding and the building gives other weights, without a word. Layers
#   with GlorotUniform(seed=1) keep theirs.
# Versions: keras 3.15.1 with its NumPy backend, numpy 2.4.6, Python 3.11; the
#   same was seen with tensorflow-cpu 2.21.0 and jax 0.7.2.
# Why it matters: folds or variants that are trained beside each other in the
#   threads of one process are seeded, and give other figures in each run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
# The NumPy backend imports SciPy, and jax for a few functions.
v/bin/pip install -q keras==3.15.1 numpy==2.4.6 scipy==1.17.1 jax==0.7.2 jaxlib==0.7.2
KERAS_BACKEND=numpy v/bin/python - <<'PY'
import random
import threading

import keras


def draw_in_a_thread():
    """Draw one number in another thread, and wait until it has ended."""
    thread = threading.Thread(target=random.random)
    thread.start()
    thread.join()


def first_weights(between, seed=None):
    """Seed Keras, do something, build a layer; return the sum of its weights."""
    keras.utils.set_random_seed(1)
    between()
    layer = keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
    layer.build((None, 6))
    return round(float(abs(layer.get_weights()[0]).sum()), 4)


alone, again = first_weights(lambda: None), first_weights(lambda: None)
beside = first_weights(draw_in_a_thread)
own = first_weights(lambda: None, seed=1), first_weights(draw_in_a_thread, seed=1)
print(f"seeded, alone:                {alone} and {again}")
print(f"seeded, one draw by a thread: {beside}")
print(f"initialiser with seed=1:      {own[0]} and {own[1]}")
assert alone == again, "seeding does not repeat even alone"
assert own[0] == own[1], "an initialiser's own seed does not hold"
assert beside != alone, "other threads change nothing now"
PY
