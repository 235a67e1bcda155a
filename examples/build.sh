#!/bin/sh
# A model and its LoRAs become a bundle. Usage: build.sh MODEL BUNDLE [options of quad build]
# MODEL is toyland, a diffusers directory or a hub id; name LoRAs with --adapter NAME=PATH.
set -eu
quad="${QUAD:-quad}"
model="$1" bundle="$2"
shift 2

$quad build "$model" -o "$bundle" "$@"   # measure, choose the shared profile, align the adapters, compile
$quad inspect "$bundle"                  # check every digest, and show what is in it
