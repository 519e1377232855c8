#!/bin/sh
# Folders first mean the BIDS App; any other first word is a command of cmb-jax.
set -eu
# Where no home can be written, programs and caches go to a folder of this run.
if [ -z "${CMB_JAX_CACHE:-}" ] && ! { [ -n "${HOME:-}" ] && mkdir -p "$HOME/.cache" 2>/dev/null && [ -w "$HOME/.cache" ]; }; then
    CMB_JAX_CACHE=$(mktemp -d 2>/dev/null || echo /nonexistent)
    export CMB_JAX_CACHE
fi
case "${1:-help}" in
    */* | .) exec cmb-jax bids "$@" ;;
    *) exec cmb-jax "$@" ;;
esac
