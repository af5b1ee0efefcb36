"""The scripts of `rapidun completion`: each asks `rapidun completion query -- WORD...` and offers what it answers.

For `python sweep.py` they ask that file, after a look whether it is rapidun's: completing must not run a stranger's
program.
"""

BASH = r"""# rapidun's completion for bash: eval "$(rapidun completion bash)"
_rapidun_words() {
    # not COMP_WORDS: bash cuts key=value at the =
    local line=${COMP_LINE:0:COMP_POINT}
    read -ra _rapidun_line <<< "$line"
    [[ $line == *[[:space:]] ]] && _rapidun_line+=("")
}

_rapidun_reply() {
    # $1: the word under the cursor; the rest: the command that knows what may stand there
    local cut="" breaks="" word=$1 candidate
    shift
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+="="
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=":"
    # bash replaces only what stands behind the last break
    [[ -n $breaks && $word == *[$breaks]* ]] && cut=${word%"${word##*[$breaks]}"}
    COMPREPLY=()
    while IFS= read -r candidate; do
        case $candidate in
            # names with blanks would have to be quoted, also those typed before: left to the user
            *[[:space:]]*) ;;
            *[=./,]) COMPREPLY+=("${candidate#"$cut"}") ;;
            *) COMPREPLY+=("${candidate#"$cut"} ") ;;
        esac
    done < <("$@" 2>/dev/null)
}

_rapidun() {
    local -a _rapidun_line
    _rapidun_words
    _rapidun_reply "${_rapidun_line[${#_rapidun_line[@]} - 1]}" \
        "${_rapidun_line[0]/#\~/$HOME}" completion query -- "${_rapidun_line[@]:1}"
}

_rapidun_python() {
    local -a _rapidun_line
    _rapidun_words
    local file=${_rapidun_line[1]/#\~/$HOME}
    COMPREPLY=()
    if (( ${#_rapidun_line[@]} > 2 )) && [[ $file == *sweep.py ]] && grep -qs "rapidun\.cli" "$file"; then
        _rapidun_reply "${_rapidun_line[${#_rapidun_line[@]} - 1]}" \
            "${_rapidun_line[0]/#\~/$HOME}" "$file" completion query -- "${_rapidun_line[@]:2}"
    fi
}

complete -o nospace -F _rapidun rapidun sweep.py
# where something else completes python already, it stays
for _rapidun_name in python python3; do
    complete -p "$_rapidun_name" &>/dev/null ||
        complete -o nospace -o bashdefault -o default -F _rapidun_python "$_rapidun_name"
done
unset _rapidun_name
"""

ZSH = r"""#compdef rapidun sweep.py
# rapidun's completion for zsh: eval "$(rapidun completion zsh)"
_rapidun_reply() {
    local -a open whole
    local candidate
    for candidate in "${(@f)$("$@" 2>/dev/null)}"; do
        case $candidate in
            '') ;;
            *[=./,]) open+=("$candidate") ;;
            *) whole+=("$candidate") ;;
        esac
    done
    (( $#open )) && compadd -S '' -a open
    (( $#whole )) && compadd -a whole
    (( $#open + $#whole ))
}

_rapidun() {
    local -a before=("${(@Q)words[2,CURRENT - 1]}")
    (( CURRENT == 2 )) && before=()
    _rapidun_reply "${~words[1]}" completion query -- "${before[@]}" "${(Q)PREFIX}"
}

_rapidun_python() {
    local file=${~${(Q)words[2]}}
    if (( CURRENT > 2 )) && [[ $file == *sweep.py ]] && grep -qs "rapidun\.cli" "$file"; then
        local -a before=("${(@Q)words[3,CURRENT - 1]}")
        (( CURRENT == 3 )) && before=()
        _rapidun_reply "${~words[1]}" "$file" completion query -- "${before[@]}" "${(Q)PREFIX}"
    elif (( $+functions[_python] )); then
        _python
    else
        _files
    fi
}

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i -D }
compdef _rapidun rapidun sweep.py
compdef _rapidun_python python python3
"""

FISH = r"""# rapidun's completion for fish: rapidun completion fish > ~/.config/fish/completions/rapidun.fish
function __rapidun_complete
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l program $before[1]
    set -e before[1]
    if test "$argv[1]" = python
        set -a program $before[1]
        set -e before[1]
    end
    $program completion query -- $before "$word" 2>/dev/null
end

function __rapidun_is_sweep
    set -l before (commandline -opc)
    test (count $before) -ge 2
    and string match -q '*sweep.py' -- $before[2]
    and grep -qs 'rapidun\.cli' $before[2]
end

complete -c rapidun -f -a '(__rapidun_complete)'
complete -c sweep.py -f -a '(__rapidun_complete)'
complete -c python -n __rapidun_is_sweep -f -a '(__rapidun_complete python)'
complete -c python3 -n __rapidun_is_sweep -f -a '(__rapidun_complete python)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
