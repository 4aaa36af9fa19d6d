package limits

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
)

//go:embed default.yaml
var defaultFile []byte

// defaultGroup is the group of users whom no group lists, where the file does not say.
const defaultGroup = "student"

// A group is a group of the file, in the order of which they count.
type group struct {
	name   string
	system []string
	layer  *layer
	limits policy.Limits
}

// An override is what the file says of one user.
type override struct {
	layer *layer
	// last keeps what was resolved for the group that the user was last asked with.
	last atomic.Pointer[resolved]
}

type resolved struct {
	group  *group
	limits policy.Limits
}

// A state is all that the files say. It does not change but for override.last.
type state struct {
	// read is false where there was no file.
	read     bool
	defaults *layer
	groups   []*group
	byName   map[string]*group
	// listed are the places in groups of the first that lists a user.
	listed   map[string]int
	fallback *group
	// overrides are by user.
	overrides               map[string]*override
	adminUsers, adminGroups []string
	notes                   []Problem
}

// A loader reads a state from the files of one directory.
type loader struct {
	*reader
	// open returns what is in a file; os.ErrNotExist where there is none.
	open  func(path string) ([]byte, error)
	dir   string
	state *state
	// fallback is the name of the default group, and fallbackLine where it stands.
	fallback     string
	fallbackLine int
}

// maxProblems is how many are told of at once.
const maxProblems = 100

// load reads the limits file and what stands beside it. On problems there is no state.
func load(path string, open func(path string) ([]byte, error)) (*state, Problems) {
	l := &loader{
		reader: &reader{file: path}, open: open, dir: filepath.Dir(path), fallback: defaultGroup,
		state: &state{defaults: newLayer("defaults"), byName: make(map[string]*group), listed: make(map[string]int), overrides: make(map[string]*override)},
	}
	text, err := open(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		l.state.defaults.from = builtIn
		text = defaultFile
	case err != nil:
		l.bad(0, "%s", reason(err))
		return nil, l.problems
	case len(strings.TrimSpace(string(text))) == 0:
		// An editor that was interrupted leaves this behind.
		l.bad(0, "is empty; write {} for no limits, or remove it for the built-in ones")
		return nil, l.problems
	default:
		l.state.read = true
	}
	if root := l.document(text); root != nil {
		l.top(root)
	}
	l.members()
	l.file = filepath.Join(l.dir, overridesName)
	l.overrides()
	l.file = path
	if n := len(l.problems); n > maxProblems {
		return nil, append(l.problems[:maxProblems:maxProblems], Problem{File: path, Text: fmt.Sprintf("and %d problems more", n-maxProblems)})
	} else if n > 0 {
		return nil, l.problems
	}
	l.resolve()
	l.state.notes = l.notes
	return l.state, nil
}

// reason is an error without the path, which the problem has.
func reason(err error) string {
	var at *os.PathError
	if errors.As(err, &at) {
		return "cannot be read: " + at.Err.Error()
	}
	return err.Error()
}

// top reads the limits file.
func (l *loader) top(root *yaml.Node) {
	for key, value := range l.pairs("the file", root) {
		switch key.Value {
		case "default_group":
			if name := l.name("default_group", value); name != "" {
				l.fallback, l.fallbackLine = name, value.Line
			}
		case "defaults":
			l.state.defaults.read(l.reader, "defaults", value, nil)
		case "groups":
			for name, value := range l.pairs("groups", value) {
				l.group(name, value)
			}
		case "access_control":
			l.access(value)
		case "enforcement":
			l.enforcement(value)
		default:
			l.unknown(key.Value, key)
		}
	}
}

func (l *loader) group(name, value *yaml.Node) {
	what := "groups." + name.Value
	if strings.ContainsAny(name.Value, "/\x00") || strings.HasPrefix(name.Value, ".") {
		l.bad(name.Line, "groups: %q cannot be a file's name, which a group's is", name.Value)
		return
	}
	g := &group{name: name.Value, layer: newLayer("group " + name.Value)}
	g.layer.read(l.reader, what, value, func(key string, value *yaml.Node) bool {
		switch key {
		case "members":
			for _, user := range l.names(what+".members", value, false) {
				l.list(user, len(l.state.groups))
			}
		case "system_group":
			g.system = l.names(what+".system_group", value, true)
		default:
			return false
		}
		return true
	})
	l.state.groups = append(l.state.groups, g)
	l.state.byName[g.name] = g
}

// list notes that the group at a place lists a user.
func (l *loader) list(user string, place int) {
	if first, ok := l.state.listed[user]; !ok || place < first {
		l.state.listed[user] = place
	}
}

// access reads who no limit applies to.
func (l *loader) access(node *yaml.Node) {
	for key, value := range l.pairs("access_control", node) {
		what := "access_control." + key.Value
		switch key.Value {
		case "admin_users":
			l.state.adminUsers = l.names(what, value, false)
		case "admin_group":
			l.state.adminGroups = l.names(what, value, true)
		default:
			l.unknown(what, key)
		}
	}
}

// enforcement is other tools', but one switch in it could be taken for ours.
func (l *loader) enforcement(node *yaml.Node) {
	for i := 0; i+1 < len(node.Content) && node.Kind == yaml.MappingNode; i += 2 {
		if key, value := node.Content[i], node.Content[i+1]; key.Value == "aggregate_limits" && value.Value == "false" {
			l.note(key.Line, "enforcement.aggregate_limits: is not read; a group without a limit for all containers together has aggregate: null")
		}
	}
}

// Names of what stands beside the limits file.
const (
	overridesName = "user-overrides.yaml"
	groupsName    = "groups"
	membersSuffix = ".members"
)

// members reads the files of the groups' members: a name per line, comments from #.
func (l *loader) members() {
	for place, g := range l.state.groups {
		path := filepath.Join(l.dir, groupsName, g.name+membersSuffix)
		text, err := l.open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			l.problems = append(l.problems, Problem{File: path, Text: reason(err)})
			continue
		}
		// Some editors begin a file with a byte order mark, as YAML may.
		for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
			line, _, _ = strings.Cut(line, "#")
			if user := strings.TrimSpace(line); user != "" {
				l.list(user, place)
			}
		}
	}
}

// overrides reads what is said of single users.
func (l *loader) overrides() {
	text, err := l.open(l.file)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		l.bad(0, "%s", reason(err))
		return
	}
	root := l.document(text)
	if root == nil {
		return
	}
	for user, value := range l.pairs("the file", root) {
		o := &override{layer: newLayer("override")}
		o.layer.read(l.reader, user.Value, value, nil)
		l.state.overrides[user.Value] = o
	}
}

// resolve computes what does not depend on a user.
func (l *loader) resolve() {
	s := l.state
	l.swapNote("defaults", s.defaults)
	for _, g := range s.groups {
		g.limits, _ = merge(s.defaults, g.layer)
		l.swapNote("groups."+g.name, g.layer)
	}
	if s.byName[l.fallback] == nil {
		if len(s.groups) > 0 && l.fallbackLine > 0 {
			l.note(l.fallbackLine, "default_group: there is no group %q; the defaults hold for its users", l.fallback)
		}
		g := &group{name: l.fallback, layer: newLayer("group " + l.fallback)}
		g.limits, _ = merge(s.defaults, g.layer)
		s.byName[g.name] = g
	}
	s.fallback = s.byName[l.fallback]
}

// swapNote says that memory is above memory_swap where a layer makes it so.
func (l *loader) swapNote(what string, over *layer) {
	raised := func(limits policy.Limits, _ origins) bool {
		c := &limits.PerContainer
		return c.Memory != nil && c.Memory == c.MemorySwap
	}
	line := max(over.lines[fieldMemory], over.lines[fieldMemorySwap])
	if under := l.state.defaults; line > 0 && raised(merge(under, over)) && (under == over || !raised(merge(under))) {
		l.note(line, "%s: memory is above memory_swap, which is memory and swap together and is raised to it", what)
	}
}

// groupNamed returns a group; the default one for a name that the file does not have.
func (s *state) groupNamed(name string) *group {
	if g := s.byName[name]; g != nil {
		return g
	}
	return s.fallback
}

// of resolves the limits of a user.
func (s *state) of(user, groupName string) policy.Limits {
	g := s.groupNamed(groupName)
	o := s.overrides[user]
	if o == nil {
		return g.limits
	}
	if last := o.last.Load(); last != nil && last.group == g {
		return last.limits
	}
	limits, _ := merge(s.defaults, g.layer, o.layer)
	o.last.Store(&resolved{g, limits})
	return limits
}

// groupOf returns the name of the first group that lists a user or has one of the
// user's groups of the system.
func (s *state) groupOf(user string, in func(groups []string) (bool, error)) (string, error) {
	place, ok := s.listed[user]
	if !ok {
		place = len(s.groups)
	}
	for i, g := range s.groups[:place] {
		if in == nil || len(g.system) == 0 {
			continue
		}
		member, err := in(g.system)
		if err != nil {
			return "", fmt.Errorf("group of %s: %w", user, err)
		}
		if member {
			place = i
			break
		}
	}
	if place < len(s.groups) {
		return s.groups[place].name, nil
	}
	return s.fallback.name, nil
}
