#!/usr/bin/env bash
# Guess: a Flower app that trains a .tflite ships it inside its bundle (FAB): one line
#   `fab-include = ["app/*.tflite"]` in pyproject.toml does it, as the key's name says.
# What is so: only some kinds of text files can be in a bundle. `flwr build` says that
#   the pattern "did not match any files" and asks to correct it, while the file lies
#   there; the same file under a name that ends in .json or .md goes in.
# Versions: flwr 1.42.0, Python 3.11.
# Why it matters: a model that every client starts from must come to the nodes by
#   another way (in the run's message, or by a download); the message sends people to
#   look for a mistake in the pattern.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q flwr==1.42.0
mkdir -p bundle/app && cd bundle
printf 'from flwr.serverapp import ServerApp\n\napp = ServerApp()\n' > app/server.py
printf 'from flwr.clientapp import ClientApp\n\napp = ClientApp()\n' > app/client.py
touch app/__init__.py
for kind in tflite npz onnx json md; do
    head -c 64 /dev/zero | tr '\0' 'x' > "app/model.$kind"
    cat > pyproject.toml <<TOML
[project]
name = "bundle"
version = "1.0.0"
description = "A model in a bundle"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "someone"
fab-include = ["app/*.py", "app/*.$kind"]

[tool.flwr.app.components]
serverapp = "app.server:app"
clientapp = "app.client:app"

[tool.flwr.app.config]
TOML
    rm -f ./*.fab
    if ../venv/bin/flwr build > out.txt 2>&1; then found=$(unzip -l ./*.fab | grep -c "app/model.$kind" || true); else found=refused; fi
    told=$(tr -d '│\n' < out.txt | tr -s ' ' | grep -o 'did not match any files: "app/[^"]*"' || true)
    echo ".$kind: $found $told"
    case $kind in
        json | md) [ "$found" = 1 ] || { echo "changed: .$kind is left out"; exit 1; } ;;
        *) [ "$found" = refused ] && [ -n "$told" ] || { echo "changed: .$kind is taken"; exit 1; } ;;
    esac
done
