#!/usr/bin/env bash
# Guess: skops loads every classifier of scikit-learn without a list of trusted
#   types: the list is for other people's code.
# What is so: logistic regression, SVC and a scaler in a pipeline load;
#   RandomForestClassifier, HistGradientBoostingClassifier and
#   KNeighborsClassifier, the usual baselines for activities, raise
#   UntrustedTypesFoundException for scikit-learn's own compiled types.
# Versions: skops 0.16.0, scikit-learn 1.9.1, Python 3.11, x86-64.
# Why it matters: skops is what one takes so as not to ship pickles to devices;
#   a loader with no list is tested with one model and fails with the next.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q skops==0.16.0 scikit-learn==1.9.1
v/bin/python - <<'PY'
import numpy as np
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from skops.io.exceptions import UntrustedTypesFoundException

generator = np.random.default_rng(0)
labels = generator.integers(0, 3, size=200)
windows = generator.normal(size=(200, 9)) + labels[:, None]
refused = set()
for model in (
    make_pipeline(StandardScaler(), LogisticRegression()),
    SVC(),
    RandomForestClassifier(10),
    HistGradientBoostingClassifier(max_iter=5),
    KNeighborsClassifier(),
):
    name = type(model).__name__
    data = skops.io.dumps(model.fit(windows, labels))
    try:
        skops.io.loads(data)
        print(f"{name:32} loads")
    except UntrustedTypesFoundException:
        refused.add(name)
        print(f"{name:32} refused: {skops.io.get_untrusted_types(data=data)}")
assert refused == {
    "RandomForestClassifier",
    "HistGradientBoostingClassifier",
    "KNeighborsClassifier",
}, refused
PY
