#compdef myticket
# Completion of myticket for zsh. The program itself knows what may follow.
_myticket() {
    local -a lines values
    local line
    lines=("${(@f)$(${(Q)words[1]/#\~/$HOME} complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    case $lines[1] in
    :files|:dirs)
        [[ $words[CURRENT] == -*=* ]] && compset -P 1 '*='
        if [[ $lines[1] == :dirs ]]; then _path_files -/; else _files; fi
        ;;
    :words)
        for line in "${(@)lines[2,-1]}"; do
            values+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        done
        _describe -t values myticket values
        ;;
    esac
}
if [[ $funcstack[1] == _myticket ]]; then
    _myticket "$@"
else
    compdef _myticket myticket
fi
