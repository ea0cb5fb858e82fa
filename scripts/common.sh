# What the scripts that fill the cache share. To be sourced.
#
# shellcheck shell=bash

cache=${LOWBIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lowbit}

say() {
    echo "$(basename "$0"): $*"
}

# Ends the script: its tests do not run here, and this is why.
skip() {
    say "SKIPPED: $*"
    exit 0
}

# Fills the directory $cache/$1, whose path it leaves in $root, by calling `fill DIRECTORY`. Does
# so once: what is there is complete.
once() {
    root=$cache/$1
    [[ ! -e $root ]] || return 0
    mkdir -p "$cache"
    new=$(mktemp -d "$root.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    fill "$new" || skip "its packages could not be had, see above"
    chmod 755 "$new"
    [[ -e $root ]] || mv "$new" "$root" # another run may have been first
    rm -rf "$new"
}
