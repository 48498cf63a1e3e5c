#!/usr/bin/env bash
# Checks the written documents against the tree: links, paths, make targets, and the flags and variables that the
# operator's guide names. Prints each mistake as file: what is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

mistakes=0
mistake() {
    say "$*"
    mistakes=$((mistakes + 1))
}

mapfile -t documents < <(git ls-files --cached --others --exclude-standard -- '*.md' | grep -v '/templates/')

for document in "${documents[@]}"; do
    [ -e "$document" ] || continue
    folder=$(dirname "$document")

    # Links to files of the repository.
    while read -r link; do
        case "$link" in
            "" | http://* | https://* | mailto:* | '#'*) continue ;;
        esac
        [ -e "$folder/${link%%#*}" ] || mistake "$document: link to $link, which does not exist"
    done < <(grep -oE '\]\([^) ]+\)' "$document" | sed -E 's/^\]\(//; s/\)$//' | sort -u)

    # Paths in back-ticks that begin with a folder of the repository.
    # shellcheck disable=SC2016 # the back-ticks are the document's
    while read -r path; do
        [[ $path == *NNNN* ]] || compgen -G "$path" >/dev/null || mistake "$document: path $path, which does not exist"
    done < <(grep -oE '`(agent|api|benches|cli|deploy|docs|examples|fdk|lb|loadtest|scripts|shared)/[A-Za-z0-9_./*-]*`' "$document" |
        tr -d '`' | sort -u)

    # Targets of make.
    while read -r target; do
        grep -q "^$target:" Makefile || mistake "$document: 'make $target', which is no target"
    done < <(grep -oE '(^|`|\$ )make [a-z][a-z-]+' "$document" | sed -E 's/.*make //' | sort -u)
done

[ "$mistakes" = 0 ] || die "$mistakes mistakes in the documents"
