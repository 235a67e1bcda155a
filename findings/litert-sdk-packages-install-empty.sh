#!/usr/bin/env bash
# ai-edge-litert-sdk-mediatek and -qualcomm 2.3.0: where their download fails, pip says "Successfully installed" and the package is empty.
#
# Both are source packages of some kilobytes whose setup.py fetches the vendor's SDK while the wheel is built. An error of that download is
# caught and written to a log that pip does not show, and the build goes on: what is installed is `__init__.py` alone. Nothing fails until a model is
# compiled, which then says that the vendor's library was not found. The one for Google Tensor stops instead ("Install SDK failed").
# Who installs behind a firewall, or from a mirror of the index, should look whether `path_to_sdk_libs()` is a folder that is there.
#
# Seen, with every address but the index out of reach:
#   mediatek  pip: exit code 0   shared libraries: 0
#   qualcomm  pip: exit code 0   shared libraries: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet setuptools==80.9.0 wheel==0.45.1
for vendor in mediatek qualcomm; do
    package="ai-edge-litert-sdk-$vendor"
    nowhere="http://127.0.0.1:9"
    "$work/venv/bin/pip" download --quiet --no-deps --no-build-isolation --no-binary :all: -d "$work/$vendor" "$package==2.3.0"
    code=0
    env https_proxy=$nowhere http_proxy=$nowhere HTTPS_PROXY=$nowhere HTTP_PROXY=$nowhere \
        "$work/venv/bin/pip" install --quiet --no-deps --no-index --no-build-isolation "$work/$vendor/"*.tar.gz || code=$?
    count=$(find "$work/venv" -path "*ai_edge_litert_sdk_$vendor*" -name "*.so*" | wc -l)
    echo "$vendor  pip: exit code $code   shared libraries: $count"
    test "$code" = 0 && test "$count" = 0
    test -n "$(find "$work/venv" -path "*ai_edge_litert_sdk_$vendor/__init__.py")"
done
echo "ai-edge-litert-sdk-mediatek, -qualcomm 2.3.0: as described"
