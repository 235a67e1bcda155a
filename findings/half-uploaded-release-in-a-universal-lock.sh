#!/usr/bin/env bash
# c2pa-python 0.38.2 (2026-10-26): two wheels for Macs and no source archive were uploaded, nothing for Linux or Windows. uv 0.13.9 pins it
# in a universal lock, which is then good for those Macs alone; pip, asked for the same range, quietly takes 0.38.1.
#
# 0.38.0 has wheels for seven platforms and a source archive, 0.38.1 five wheels (no Windows) and no archive. A lock made on one machine and
# checked there with pip shows nothing: the line names a version, its hashes are right, and `pip install --require-hashes` fails elsewhere with
# "no matching distribution", as though the version did not exist. A range needs an exclusion by hand (`!=0.38.2`).
#
# Seen on Linux x86_64:
#   uv locks     c2pa-python==0.38.2 with 2 hashes
#   pip takes    c2pa_python-0.38.1-py3-none-manylinux_2_28_x86_64.whl
#   pip of the lock: No matching distribution found for c2pa-python==0.38.2
set -euo pipefail
case "$(uname -sm)" in "Linux x86_64") ;; *) echo "for Linux x86_64"; exit 2 ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet uv==0.13.9
cd "$work"
echo 'c2pa-python==0.38.*' > wanted.in
venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-deps --generate-hashes --no-header wanted.in -o lock.txt
echo "uv locks: $(grep -o 'c2pa-python==[0-9.]*' lock.txt | head -1), $(grep -c sha256 lock.txt) hashes"
venv/bin/pip download --quiet --no-deps --dest taken -r wanted.in
echo "pip takes: $(ls taken)"
if venv/bin/pip install --quiet --no-deps --require-hashes -r lock.txt 2> refusal; then echo "the behaviour has changed"; exit 1; fi
grep -h "No matching distribution" refusal
grep -q 'c2pa-python==0.38.2' lock.txt && [ "$(grep -c sha256 lock.txt)" = 2 ] && ls taken | grep -q '0.38.1.*manylinux' || { echo "the behaviour has changed"; exit 1; }
echo "as described"
