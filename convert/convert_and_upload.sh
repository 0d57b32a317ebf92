#!/bin/sh
# A checkpoint by a set of recipes, one after the other: converted, verified, uploaded.
#
# Every step that is done is skipped when the same command is given again: a folder that is there
# and verifies is not converted again, the converter itself goes on with what it has finished, and
# the Hub is not sent again what it has.  Nothing is ever removed: that is yours to do.
set -eu

usage() {
    cat <<'END'
usage: convert_and_upload.sh [--dry-run] [--private] [--report] SOURCE USER [RECIPE ...]

  SOURCE      a name on the Hugging Face Hub, such as google/gemma-4-12B-it, or a folder
  USER        whose repositories they become, on the Hub: a user or an organization
  RECIPE      names or .toml files; default: q4 q8 mixed-4-8 mxfp4 nvfp4 mxfp8

  --dry-run   print the commands, and run none of them
  --private   nobody else may see the repositories
  --report    compare each result with the source, for its model card

Folders are made here, named after the last part of SOURCE in lower case and the recipe:
gemma-4-12b-it-q4 becomes USER/gemma-4-12b-it-q4.
END
}

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "error: $*"
    exit 2
}

# Print a command so that it can be pasted, and run it unless this is a dry run.
run() {
    line='+'
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=@%+,-]*)
            word=\'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")\'
            ;;
        esac
        line="$line $word"
    done
    say "$line"
    if [ "$is_dry" = no ]; then
        "$@"
    fi
}

# Print what a folder and its repository are called: letters, digits, '.', '_', and single '-'.
name_of() {
    if [ -d "$1" ]; then
        last=$(cd -- "$1" && pwd)
    else
        last=$1
    fi
    printf '%s-%s' "$(basename -- "$last")" "$(basename -- "$2" .toml)" |
        LC_ALL=C tr '[:upper:]' '[:lower:]' |
        LC_ALL=C tr -cs 'a-z0-9._-' '-' |
        sed -e 's/--*/-/g' -e 's/^[-.]*//'
}

is_dry=no
private=
report=
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) is_dry=yes ;;
    --private) private=--private ;;
    --report) report=--report ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        break
        ;;
    -*) fail "unknown option $1; see --help" ;;
    *) break ;;
    esac
    shift
done
if [ $# -lt 2 ]; then
    usage >&2
    exit 2
fi
source=$1
user=$2
shift 2
case $user in
'' | *[!A-Za-z0-9._-]*) fail "USER is '$user'; allowed is one name, without a slash" ;;
esac
for recipe in "$@"; do
    case $recipe in
    -*) fail "$recipe stands behind SOURCE; options come first" ;;
    esac
done
if [ $# -eq 0 ]; then
    set -- q4 q8 mixed-4-8 mxfp4 nvfp4 mxfp8
fi

is_done=no
trap '[ "$is_done" = yes ] || say "stopped; the same command goes on from here"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for recipe in "$@"; do
    name=$(name_of "$source" "$recipe")
    say "== $name"
    if [ -d "$name" ]; then
        if ! run mlx-gemma4 verify "$name"; then
            fail "$name is there and does not verify; move it away, or remove it"
        fi
    else
        run mlx-gemma4 convert "$source" --recipe "$recipe" --output "$name" ${report:+"$report"}
    fi
    run mlx-gemma4 upload "$name" --repo "$user/$name" ${private:+"$private"}
done
is_done=yes
if [ "$is_dry" = yes ]; then
    say "nothing was run"
else
    say "done: $# of $#"
fi
