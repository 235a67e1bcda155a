#!/bin/sh
# A signed repository of adapters, and a device that installs from it. Usage: over_the_air.sh BUNDLE NAME PACK NEWER_PACK
# QUAD_PASSWORD holds the password of the publisher's keys.
set -eu
quad="${QUAD:-quad}"
bundle="$1" name="$2" pack="$3" newer="$4"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# The publisher: keys that stay at home, and a directory that any static host can serve.
$quad publish init "$work/repo" --keys "$work/keys"
$quad publish add "$work/repo" "$pack" --keys "$work/keys"    # version 1 of its adapter

# The device: the root of trust comes by another way than the network, once.
store="$work/store"
$quad install "$bundle" "$name" --url "$work/repo" --root "$work/repo/metadata/1.root.json" --store "$store"

# A newer version comes, and goes again.
$quad publish add "$work/repo" "$newer" --keys "$work/keys"   # version 2
$quad install "$bundle" "$name" --store "$store"
$quad list "$bundle" --store "$store"
$quad rollback "$bundle" "$name" --store "$store"
$quad list "$bundle" --store "$store"
