# Completion of myticket for bash 4 or newer. The program itself knows what may follow.
_myticket() {
    local words=() word lines line prefix i
    # Bash splits words at = and :, which may be part of one here.
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((${#words[@]} > 0)) && { [[ $word == [=:]* ]] || [[ ${words[-1]} == -*= || ${words[-1]} == *: ]]; }; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    COMPREPLY=()
    mapfile -t lines < <("${COMP_WORDS[0]/#\~/$HOME}" complete -- "${words[@]}" 2>/dev/null)
    case ${lines[0]-} in
    :files) compopt -o default ;;
    :dirs) compopt -o dirnames ;;
    :words)
        # Bash replaces only what comes after the last = or :.
        word=${COMP_WORDS[COMP_CWORD]}
        [[ $word == [=:]* ]] && word=
        prefix=${words[-1]%"$word"}
        for line in "${lines[@]:1}"; do
            line=${line%%$'\t'*}
            COMPREPLY+=("${line#"$prefix"}")
        done
        ;;
    esac
}
complete -F _myticket myticket
