package limits

import (
	"fmt"
	"strings"
)

// A Problem is a place of a file, and what is the matter there.
type Problem struct {
	File string
	// Line is 0 where the whole file is meant.
	Line int
	Text string
}

// String returns the problem as "file: line N: text".
func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s: line %d: %s", p.File, p.Line, p.Text)
}

// Problems are all that is wrong with the files, for which they are not used.
type Problems []Problem

// Error returns one problem a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}
