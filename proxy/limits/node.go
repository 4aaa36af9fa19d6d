package limits

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"regexp"
	"strconv"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// maxFile is the largest file that is read, in bytes.
const maxFile = 1 << 20

// readFile reads a regular file of at most maxFile bytes. Errors: os.ErrNotExist where
// there is none.
func readFile(path string) ([]byte, error) {
	// A FIFO in place of the file must not hold the daemon.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("has more than %d bytes", maxFile)
	}
	return text, err
}

// A reader reads one file and gathers what is wrong with it, and what it does not know.
type reader struct {
	file     string
	problems Problems
	notes    []Problem
}

func (r *reader) bad(line int, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.file, line, fmt.Sprintf(format, args...)})
}

func (r *reader) note(line int, format string, args ...any) {
	r.notes = append(r.notes, Problem{r.file, line, fmt.Sprintf(format, args...)})
}

// unknown notes a key that is another tool's, or a mistake.
func (r *reader) unknown(what string, key *yaml.Node) { r.note(key.Line, "%s: is not read", what) }

var (
	lineOfError = regexp.MustCompile(`^(?:yaml: )*(?:line ([0-9]+): )?(.*)`)
	// ofParser are the decoder's messages whose line counts from 0, as its others' do not.
	ofParser = regexp.MustCompile(`^(did not find expected (<|node content|key$|'-'|',')|found (duplicate %|incompatible|undefined tag))`)
	// ofBytes are its messages about bytes that are no text, which have no line.
	ofBytes       = regexp.MustCompile(`UTF|Unicode|control characters|surrogate|octet`)
	missingAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// syntax reports an error of the YAML decoder, which leaves out the first line's number
// and that of an unknown anchor.
func (r *reader) syntax(text []byte, err error) {
	m := lineOfError.FindStringSubmatch(err.Error())
	line, _ := strconv.Atoi(m[1])
	anchor := missingAnchor.FindStringSubmatch(m[2])
	switch {
	case anchor != nil:
		line = 1 + bytes.Count(text[:max(0, bytes.Index(text, []byte("*"+anchor[1])))], []byte("\n"))
	case ofBytes.MatchString(m[2]):
	case line == 0 || ofParser.MatchString(m[2]):
		line++
	}
	lines := 1 + bytes.Count(bytes.TrimRight(text, "\n"), []byte("\n"))
	r.bad(min(line, lines), "%s", m[2])
}

// document returns the one YAML document of a text; nil where there is none.
func (r *reader) document(text []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var first, second yaml.Node
	err := dec.Decode(&first)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if err = dec.Decode(&second); err == nil {
			r.bad(second.Line, "more than one YAML document; keep the first")
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		r.syntax(text, err)
		return nil
	}
	if len(first.Content) == 0 {
		return nil
	}
	return first.Content[0]
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// alias reports whether a node is an alias, which is not followed: what it stands for
// could be endless.
func (r *reader) alias(what string, n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode {
		r.bad(n.Line, "%s: is an alias (*%.40s); write out what it stands for", what, n.Value)
	}
	return n.Kind == yaml.AliasNode
}

// pairs are the keys and values of a mapping, without what is wrong; null has none.
func (r *reader) pairs(what string, n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(key, value *yaml.Node) bool) {
		if r.alias(what, n) || isNull(n) {
			return
		}
		if n.Kind != yaml.MappingNode {
			r.bad(n.Line, "%s: is not a mapping of keys to values", what)
			return
		}
		seen := make(map[string]int, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			switch {
			case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
				r.bad(key.Line, "%s: << is not followed; write out the keys", what)
			case key.Kind != yaml.ScalarNode || isNull(key) || key.Value == "":
				r.bad(key.Line, "%s: has a key that is not a name", what)
			case seen[key.Value] != 0:
				r.bad(key.Line, "%s: the key %q stands in line %d too", what, key.Value, seen[key.Value])
			default:
				seen[key.Value] = key.Line
				if !yield(key, value) {
					return
				}
			}
		}
	}
}

// scalar returns the text of a number or a string.
func (r *reader) scalar(what string, n *yaml.Node) (text string, null, ok bool) {
	if r.alias(what, n) {
		return "", false, false
	}
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!null":
			return "", true, true
		case "!!str", "!!int", "!!float":
			return n.Value, false, true
		}
	}
	r.bad(n.Line, "%s: is neither a number nor a text", what)
	return "", false, false
}

// name returns a name; "" for null.
func (r *reader) name(what string, n *yaml.Node) string {
	text, null, ok := r.scalar(what, n)
	if ok && !null && text == "" {
		r.bad(n.Line, "%s: is empty", what)
	}
	return text
}

// names returns a list of names, which may be a single one.
func (r *reader) names(what string, n *yaml.Node, single bool) []string {
	if r.alias(what, n) || isNull(n) {
		return nil
	}
	if n.Kind == yaml.ScalarNode && single {
		return []string{r.name(what, n)}
	}
	if n.Kind != yaml.SequenceNode {
		r.bad(n.Line, "%s: is not a list of names", what)
		return nil
	}
	out := make([]string, 0, len(n.Content))
	for _, one := range n.Content {
		if isNull(one) {
			r.bad(one.Line, "%s: has an empty name", what)
			continue
		}
		out = append(out, r.name(what, one))
	}
	return out
}
