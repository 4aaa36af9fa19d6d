package policy

import (
	"fmt"
	"slices"
	"strings"
)

// topColumns are the columns of ps that may be asked for: each has a header, and no value
// that a process chooses but those that come last, where words may follow.
var topColumns = strings.Fields(`pid ppid pgid sid tid lwp uid ruid euid gid rgid egid user ruser euser group rgroup egroup
pcpu %cpu c cp pmem %mem rss rssize rsz vsz vsize sz size nlwp thcount ni nice pri priority psr cls class rtprio stat s state
time cputime cputimes etime etimes stime bsdtime bsdstart tty tt tname wchan maj_flt min_flt`)

// lastColumns are those whose values are words of the process.
var lastColumns = []string{"args", "cmd", "command", "comm", "ucmd", "ucomm"}

// topFlags are ps' own selections and forms without arguments.
var topFlags = []string{"aux", "-aux", "auxw", "auxww", "-ef", "-e", "-A", "-f", "-F", "-l", "-ww", "-w", "ww", "w", "-efww", "-elf", "-eLf", "-eo", "-o", "-Ao", "o", "axo", "-axo", "-L", "ax", "a", "x", "u"}

// TopArguments decides about the options of docker top. The Engine runs ps on the host
// and keeps the lines whose column PID is a process of the container: whoever makes the
// columns lie reads everybody's.
func TopArguments(p *Profile, args string) Verdict {
	const rule = "top-arguments"
	if args == "" || p.OwnershipOnly {
		return allow(rule)
	}
	words := strings.FieldsFunc(args, func(r rune) bool { return r == ' ' || r == ',' })
	columns := false
	for i, word := range words {
		switch {
		case slices.Contains(topFlags, word):
			columns = columns || strings.HasSuffix(word, "o")
		case columns && slices.Contains(topColumns, word):
		case columns && slices.Contains(lastColumns, word) && i == len(words)-1:
		default:
			return refuse(rule, fmt.Sprintf("Permission denied: docker top with %q of ps is not allowed here (rule %s, profile %s). Allowed: aux, -ef and the like, and -o with plain columns, such as -o pid,user,time,args.", word, rule, p.Name))
		}
	}
	return allow(rule)
}
