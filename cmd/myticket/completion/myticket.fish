# Completion of myticket for fish. The program itself knows what may follow.
function __myticket_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l lines ($words[1] complete -- $words[2..-1] "$word" 2>/dev/null)
    set -l value (string replace -r '^-[^=]*=' '' -- "$word")
    set -l prefix (string sub -l (math (string length -- "$word") - (string length -- "$value")) -- "$word")
    switch "$lines[1]"
        case :files
            for found in (__fish_complete_path "$value")
                echo "$prefix$found"
            end
        case :dirs
            for found in (__fish_complete_directories "$value")
                echo "$prefix$found"
            end
        case :words
            printf '%s\n' $lines[2..-1]
    end
end
complete -c myticket -f -a '(__myticket_complete)'
